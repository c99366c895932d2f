#!/usr/bin/env python3
"""Every link of the book's pages leads to a file that is there, and to a place in it.

    mdbook build docs
    python3 tests/peers/book_links.py
"""

import html.parser
import pathlib
import urllib.parse

BOOK = pathlib.Path(__file__).resolve().parents[2] / "book"


class Page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.links, self.places = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.places.update(told[key] for key in ("id", "name") if told.get(key))
        self.links += [told[key] for key in ("href", "src") if told.get(key)]


def main():
    # print.html has all pages in one, without their places; 404.html is for servers.
    pages = {path: Page(path) for path in BOOK.rglob("*.html") if path.name not in ("print.html", "404.html", "toc.html")}
    assert len(pages) > 15, f"{BOOK} is no book; run: mdbook build docs"
    followed, wrong = 0, []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            place = urllib.parse.unquote(parts.fragment)
            known = pages.get(target)
            is_there = target.exists() and (not place or not known or place in known.places)
            followed += 1
            if not is_there:
                wrong.append(f"{path.relative_to(BOOK)}: {link}")
    assert not wrong, "\n".join(["links that lead nowhere:", *wrong])
    print(f"{followed} passed, 0 failed")


if __name__ == "__main__":
    main()
