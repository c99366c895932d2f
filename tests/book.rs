//! The book: its pages are listed, its links lead somewhere, its list of commands is what the programs say, and the
//! commands of its tutorial and how-to pages run.
//!
//! A block of `sh` is run as it stands, with the built programs on PATH. A comment on the line before may say otherwise:
//!
//! ```text
//! <!-- at: pi -->              by the machine of that name: a home and a working folder of its own
//! <!-- says: bag -->           and this must be in what it prints
//! <!-- goes on -->             one program that is not waited for, but until it says where it listens
//! <!-- needs: haproxy -->      only where that program is
//! <!-- not run: why -->        not at all; the test says so
//! <!-- ends: laptop -->        what goes on at that machine is ended as by Ctrl-C
//! ```
//!
//! All machines are this one, so addresses are replaced by free ones of its own, and what is spoken there is TLS if it is
//! between machines in the book. `scp` is a copy, and a pairing code is typed as it was printed.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const EDGENT: &str = env!("CARGO_BIN_EXE_edgent");

/// Addresses of other machines begin so in the book.
const ELSEWHERE: &str = "192.168.";

/// What the shell is told beforehand where a page is about several machines.
const MACHINES: &str = r#"
scp() { for last; do :; done; for file; do case $file in -*|"$last") ;; *) cp -r "$file" "../${last%%:*}/";; esac; done; }
edgent() { case $1 in infer|status|push|rollback|pin|top|watch) command edgent "$@" --tls;; *) command edgent "$@";; esac; }
"#;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The pages of a part of the book.
fn pages(parts: &[&str]) -> Vec<String> {
    let summary = read(&project().join("docs/SUMMARY.md"));
    let (mut part, mut pages) = ("", Vec::new());
    for line in summary.lines() {
        part = line.strip_prefix("# ").unwrap_or(part);
        if let Some((_, link)) = line.split_once("](").filter(|_| parts.is_empty() || parts.contains(&part)) {
            pages.push(link.trim_end_matches(')').to_owned());
        }
    }
    pages
}

#[test]
fn every_page_is_in_the_summary_and_every_link_leads_somewhere() {
    let docs = project().join("docs");
    let listed = pages(&[]);
    for entry in fs::read_dir(&docs).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        let is_listed = listed.contains(&entry) || entry == "SUMMARY.md" || !entry.ends_with(".md");
        assert!(is_listed, "docs/{entry} is not in docs/SUMMARY.md");
    }
    let others = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| project().join(name));
    let mut followed = 0;
    for page in listed.iter().map(|page| docs.join(page)).chain(others).chain([docs.join("SUMMARY.md")]) {
        for link in links(&read(&page)) {
            let (path, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            let found =
                heading.is_empty() || read(&target).lines().any(|line| anchor(line).as_deref() == Some(heading));
            assert!(found, "{}: {link}: no such heading", page.display());
            followed += 1;
        }
    }
    assert!(followed > 60, "only {followed} links");
}

/// Links of a page to what is here, but for those in its code.
fn links(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let ends = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    ends.map(|(link, _)| link.to_owned()).filter(|link| !link.contains("://")).collect()
}

fn anchor(line: &str) -> Option<String> {
    let heading = line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))?;
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

#[test]
fn the_list_of_commands_is_what_the_programs_say() {
    let folder = scratch("commands");
    let written = Command::new(EDGENT).args(["man", "--markdown"]).arg(&folder).status().unwrap();
    assert!(written.success());
    let is_fresh = read(&folder.join("commands.md")) == read(&project().join("docs/commands.md"));
    assert!(is_fresh, "docs/commands.md is old; run: cargo run --release -- man docs --markdown");
}

#[test]
fn the_commands_of_tutorial_and_how_to_pages_run() {
    let (mut ran, mut left_out) = (0, Vec::new());
    for page in pages(&["Tutorial", "How to"]) {
        let steps = steps(&read(&project().join("docs").join(&page)), &page);
        let mut stage = Stage::new(&page, &steps);
        for step in &steps {
            match stage.take(step) {
                None => ran += 1,
                Some(why) => left_out.push(format!("{page}: {}: {why}", step.says())),
            }
        }
        stage.end();
    }
    println!("{ran} blocks ran, {} did not:", left_out.len());
    left_out.iter().for_each(|line| println!("  {line}"));
    assert!(ran >= 20, "only {ran} blocks ran");
}

/// A block of a page, or the end of what goes on.
#[derive(Debug)]
struct Step {
    page: String,
    line: usize,
    told: HashMap<String, String>,
    block: String,
}

impl Step {
    fn says(&self) -> &str {
        self.block.lines().next().unwrap_or_default()
    }

    fn machine(&self) -> &str {
        self.told.get("at").map_or("here", String::as_str)
    }

    fn is_host(&self) -> bool {
        self.block.starts_with("edgent-host")
    }
}

/// What a page has its reader do, in order.
fn steps(text: &str, page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut told = HashMap::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if let Some(comment) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
            // A reason is a sentence, the rest are words.
            let words = if comment.starts_with("not run: ") { vec![comment] } else { comment.split("; ").collect() };
            let words = words.into_iter().map(|word| word.split_once(": ").unwrap_or((word, "")));
            told = words.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            let known = ["at", "says", "goes on", "needs", "not run", "ends"];
            let is_known = told.keys().all(|key| known.contains(&key.as_str()));
            assert!(is_known, "docs/{page}:{}: {comment}", index + 1);
            if !told.contains_key("ends") {
                continue;
            }
        } else if !line.starts_with("```") {
            told.clear();
            continue;
        }
        let is_shell = line == "```sh";
        let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| line.starts_with("```").eq(&false));
        let block =
            if line.starts_with("```") { inside.map(|line| format!("{line}\n")).collect() } else { String::new() };
        if is_shell || told.contains_key("ends") {
            steps.push(Step { page: page.to_owned(), line: index + 1, told: std::mem::take(&mut told), block });
        }
    }
    steps
}

/// The machines of a page: folders of this one.
struct Stage {
    folder: PathBuf,
    /// What an address of the page is here.
    addresses: HashMap<String, String>,
    is_networked: bool,
    going_on: Vec<(String, Child)>,
    /// The one that was printed last.
    code: String,
}

impl Stage {
    fn new(page: &str, steps: &[Step]) -> Self {
        let blocks = || steps.iter().map(|step| step.block.as_str());
        let words = blocks().flat_map(|block| block.split(|c: char| !(c.is_ascii_digit() || ".:".contains(c))));
        let mut kept = Vec::new();
        let mut free = |address: &str| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let here = listener.local_addr().unwrap().to_string();
            kept.push(listener);
            (address.to_owned(), here)
        };
        let is_address = |word: &&str| word.parse::<std::net::SocketAddr>().is_ok();
        let mut addresses: Vec<&str> = words.filter(is_address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let addresses = addresses.into_iter().map(&mut free).collect();
        let is_networked = blocks().any(|block| block.contains(ELSEWHERE));
        let folder = scratch(page);
        for machine in steps.iter().map(Step::machine).collect::<HashSet<_>>() {
            fs::create_dir(folder.join(machine)).unwrap();
            for there in ["models", "host", "packaging"] {
                symlink(project().join(there), folder.join(machine).join(there)).unwrap();
            }
        }
        Self { folder, addresses, is_networked, going_on: Vec::new(), code: String::new() }
    }

    /// Does a step. Gives why, if it was left out.
    fn take(&mut self, step: &Step) -> Option<String> {
        if let Some(machine) = step.told.get("ends") {
            self.end_at(machine);
            return None;
        }
        if let Some(why) = step.told.get("not run") {
            return Some(why.clone());
        }
        if let Some(program) = step.told.get("needs").filter(|program| !is_here(program)) {
            return Some(format!("{program} is not here"));
        }
        let machine = step.machine();
        let mut child = self.shell(step, machine);
        let _ = child.stdin.take().unwrap().write_all(format!("{}\n", self.code).as_bytes());
        if step.told.contains_key("goes on") {
            self.wait_until_ready(step, &mut child);
            self.going_on.push((machine.to_owned(), child));
            return None;
        }
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        let status = child.wait().unwrap();
        let place = format!("docs/{}:{}: {}", step.page, step.line, step.block);
        assert!(status.success(), "{place}{status}; it printed\n{printed}");
        let wanted = step.told.get("says").map_or("", String::as_str);
        assert!(printed.contains(wanted), "{place}does not say '{wanted}', but\n{printed}");
        None
    }

    fn shell(&self, step: &Step, machine: &str) -> Child {
        let mut block = step.block.clone();
        self.addresses.iter().for_each(|(address, here)| block = block.replace(address, here));
        let goes_on = step.told.contains_key("goes on");
        let script = match (goes_on, self.is_networked) {
            (true, _) => format!("exec {block}"),
            (false, true) => format!("{MACHINES}{block}"),
            (false, false) => block,
        };
        let programs = Path::new(EDGENT).parent().unwrap().to_str().unwrap();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
        let home = self.folder.join(machine);
        let mut command = Command::new("sh");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EDGENT_")) {
            command.env_remove(name);
        }
        command.args(["-euc", &script]).env("PATH", path).env("HOME", &home).env_remove("XDG_CONFIG_HOME");
        if self.is_networked {
            command.env("EDGENT_TLS", "true");
        }
        command.current_dir(&home).stdin(Stdio::piped()).stdout(Stdio::piped());
        if goes_on && !step.is_host() {
            command.stderr(Stdio::piped());
        }
        // A terminal's Ctrl-C is this test's to give.
        command.process_group(0).spawn().unwrap()
    }

    /// Reads what it says until it says where it listens, and a code if it is to print one.
    fn wait_until_ready(&mut self, step: &Step, child: &mut Child) {
        let is_host = step.is_host();
        let pairs = step.block.contains("pair");
        // The tool prints its code for people.
        let mut said: Box<dyn Read + Send> = match is_host {
            true => Box::new(child.stdout.take().unwrap()),
            false => Box::new(child.stderr.take().unwrap()),
        };
        let mut lines = BufReader::new(&mut said).lines().map(Result::unwrap);
        if is_host {
            let line = lines.next().unwrap_or_default();
            assert!(line.contains("listening on"), "docs/{}:{}: {}it says '{line}'", step.page, step.line, step.block);
        }
        if pairs {
            let line = lines.find(|line| line.contains("pairing code")).unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = words.iter().position(|word| *word == "code").expect(&line);
            self.code = words[after + 1].to_owned();
        }
        // What it says later is nobody's to read, but it must be able to say it.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    }

    /// As by Ctrl-C; each must end in good order.
    fn end_at(&mut self, machine: &str) {
        let (ended, stays): (Vec<_>, _) = self.going_on.drain(..).partition(|(at, _)| at == machine);
        self.going_on = stays;
        ended.into_iter().for_each(|(_, child)| end(child));
    }

    fn end(mut self) {
        self.going_on.drain(..).rev().for_each(|(_, child)| end(child));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for (_, child) in &mut self.going_on {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn end(mut child: Child) {
    // It may have done what it was to do.
    if child.try_wait().unwrap().is_none() {
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "what went on ended with {status}");
}

fn is_here(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap();
    path.split(':').any(|folder| Path::new(folder).join(program).exists())
}

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("book").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}
