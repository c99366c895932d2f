//! The demo's report: one HTML page that needs nothing else, and its time line as SVG.

use std::fmt::Write;

/// What the page is made of.
pub(crate) struct Report {
    pub(crate) title: String,
    pub(crate) model: String,
    pub(crate) seconds: f64,
    pub(crate) deadline_ms: f64,
    pub(crate) emulated_slowdown: f64,
    pub(crate) emulated_link: String,
    pub(crate) exits: Vec<ExitInfo>,
    pub(crate) requests: Vec<RequestRow>,
    pub(crate) rate: Vec<RatePoint>,
    /// Figures for the tiles: what, and how much.
    pub(crate) tiles: Vec<(String, String)>,
    pub(crate) examples: Vec<Example>,
    /// What happened to the hosts, and when, in seconds.
    pub(crate) events: Vec<(f64, String)>,
}

/// An exit of the network.
pub(crate) struct ExitInfo {
    pub(crate) name: String,
    pub(crate) accuracy: f64,
}

/// A request and how it was answered.
pub(crate) struct RequestRow {
    pub(crate) at_s: f64,
    pub(crate) latency_ms: f64,
    pub(crate) deadline_met: bool,
    pub(crate) answered: bool,
    pub(crate) right: bool,
    pub(crate) exit: usize,
    pub(crate) placement: Placement,
    /// For people: the plan in a few words.
    pub(crate) plan: String,
    /// For people: the version of the model that answered.
    pub(crate) version: String,
    pub(crate) degraded: Option<String>,
    pub(crate) estimated_rate_bps: f64,
}

/// Which host ran segments.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    DeviceOnly,
    Split,
    EdgeOnly,
}

/// The link's rate from a moment on.
#[derive(Clone)]
pub(crate) struct RatePoint {
    pub(crate) at_s: f64,
    pub(crate) rate_bps: f64,
}

/// An image and its answer.
pub(crate) struct Example {
    pub(crate) png: Vec<u8>,
    pub(crate) truth: String,
    pub(crate) answer: String,
    pub(crate) right: bool,
    pub(crate) plan: String,
}

/// The styles of all reports.
pub(crate) const CSS: &str = include_str!("report.css");

const WIDTH: f64 = 1_000.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 14.0;
const RATE: Panel = Panel { top: 26.0, height: 120.0 };
const LATENCY: Panel = Panel { top: 186.0, height: 150.0 };
const EXIT: Panel = Panel { top: 376.0, height: 110.0 };
const WHERE: Panel = Panel { top: 526.0, height: 26.0 };
const HEIGHT: f64 = 592.0;

/// The whole page.
pub(crate) fn render(report: &Report) -> String {
    let mut page = String::new();
    let title = escape(&report.title);
    let model = escape(&report.model);
    let tiles: String = report
        .tiles
        .iter()
        .map(|(what, value)| format!("<div class=tile><b>{}</b><span>{}</span></div>", escape(value), escape(what)))
        .collect();
    let _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>\
         <title>{title}</title><style>{CSS}</style><h1>{title}</h1>\
         <p>For {:.0} seconds a device answered images with <b>{model}</b> within {:.0} ms each, alone or together with an edge, \
         while the link between them changed.</p>\
         <p class='note'>Emulated: the device is this machine made {:.0} times slower, and the link is {}. \
         Everything else is real: two processes, the trained network, its test images, WebAssembly segments, Cap'n Proto RPC.</p>\
         <div class=tiles>{tiles}</div><h2>What happened</h2><div class='card wide'>{}{}</div>",
        report.seconds,
        report.deadline_ms,
        report.emulated_slowdown,
        escape(&report.emulated_link),
        timeline(report),
        legend(),
    );
    let _ = write!(
        page,
        "<h2>How it was answered</h2><div class=columns>{}{}</div>",
        exits_table(report),
        places_table(report)
    );
    let _ = write!(page, "<div class=columns>{}{}</div>", versions_table(report), events_table(report));
    let _ = write!(page, "<h2>Some of the images</h2><div class=examples>{}</div>", examples(report));
    page
}

/// The time line alone, with its own styles.
pub(crate) fn timeline_svg(report: &Report) -> String {
    let variables = CSS.split_once("* {").map_or("", |(variables, _)| variables);
    let style =
        format!("<style>{variables} svg {{ background: var(--bg); font-family: system-ui, sans-serif; }}</style>");
    timeline(report).replacen("<title>", &format!("{style}<title>"), 1)
}

struct Panel {
    top: f64,
    height: f64,
}

impl Panel {
    /// The place of a share of the height, 0 at the bottom.
    fn y(&self, share: f64) -> f64 {
        self.top + self.height * (1.0 - share.clamp(0.0, 1.0))
    }

    fn frame(&self, svg: &mut String, title: &str) {
        let (top, bottom) = (self.top, self.top + self.height);
        let _ = write!(
            svg,
            "<text x='{LEFT}' y='{}' fill='var(--ink)' font-size='13' font-weight='600'>{}</text>\
             <path d='M{LEFT} {top}V{bottom}H{}' fill='none' stroke='var(--line)'/>",
            top - 9.0,
            escape(title),
            WIDTH - RIGHT
        );
    }

    fn tick(&self, svg: &mut String, share: f64, label: &str) {
        let y = self.y(share);
        let _ = write!(
            svg,
            "<path d='M{LEFT} {y:.1}H{}' stroke='var(--line)' stroke-width='.6'/>\
             <text x='{}' y='{:.1}' text-anchor='end' fill='var(--soft)' font-size='12'>{}</text>",
            WIDTH - RIGHT,
            LEFT - 7.0,
            y + 4.0,
            escape(label)
        );
    }
}

fn timeline(report: &Report) -> String {
    let seconds = report.seconds.max(1.0);
    let x = |at_s: f64| LEFT + (WIDTH - LEFT - RIGHT) * (at_s / seconds).clamp(0.0, 1.0);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' width='100%'>\
         <title>Time line of the demo</title><desc>Link rate, latency against the deadline, exit taken and where each request ran, over {seconds:.0} seconds.</desc>"
    );
    rate_panel(report, &x, &mut svg);
    latency_panel(report, &x, &mut svg);
    exit_panel(report, &x, &mut svg);
    where_panel(report, &x, &mut svg);
    events_marks(report, &x, &mut svg);
    let step = if seconds > 60.0 {
        20.0
    } else if seconds > 12.0 {
        5.0
    } else {
        1.0
    };
    for at_s in (0..).map(|i| f64::from(i) * step).take_while(|at_s| *at_s <= seconds) {
        let _ = write!(
            svg,
            "<text x='{:.1}' y='{}' text-anchor='middle' fill='var(--soft)' font-size='12'>{at_s:.0} s</text>",
            x(at_s),
            HEIGHT - 16.0
        );
    }
    svg + "</svg>"
}

fn rate_panel(report: &Report, x: &impl Fn(f64) -> f64, svg: &mut String) {
    RATE.frame(svg, "Link rate: as shaped, and as the device estimates it");
    let share = |bps: f64| (bps.max(20e3) / 20e3).log10() / (40e6_f64 / 20e3).log10();
    for (bps, label) in [(50e3, "50 kbit/s"), (500e3, "500 kbit/s"), (5e6, "5 Mbit/s"), (20e6, "20 Mbit/s")] {
        RATE.tick(svg, share(bps), label);
    }
    let mut path = String::new();
    for (index, point) in report.rate.iter().enumerate() {
        let until = report.rate.get(index + 1).map_or(report.seconds, |next| next.at_s);
        let command = if index == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}H{:.1}", x(point.at_s), RATE.y(share(point.rate_bps)), x(until));
    }
    let _ = write!(svg, "<path d='{path}' fill='none' stroke='var(--ink)' stroke-width='2'/>");
    let known = report.requests.iter().filter(|request| request.estimated_rate_bps > 0.0);
    let points: Vec<String> =
        known.map(|r| format!("{:.1},{:.1}", x(r.at_s), RATE.y(share(r.estimated_rate_bps)))).collect();
    let _ = write!(
        svg,
        "<polyline points='{}' fill='none' stroke='var(--estimate)' stroke-width='1.6' stroke-dasharray='5 3'/>",
        points.join(" ")
    );
}

fn latency_panel(report: &Report, x: &impl Fn(f64) -> f64, svg: &mut String) {
    LATENCY.frame(svg, "Latency of each request, against the deadline");
    let top_ms = report.deadline_ms * 2.0;
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let more = if share == 1.0 { "≥ " } else { "" };
        LATENCY.tick(svg, share, &format!("{more}{:.0} ms", share * top_ms));
    }
    let y = LATENCY.y(0.5);
    let _ = write!(
        svg,
        "<path d='M{LEFT} {y}H{}' stroke='var(--bad)' stroke-width='1.5' stroke-dasharray='8 4'/>",
        WIDTH - RIGHT
    );
    for request in &report.requests {
        let (x, y) = (x(request.at_s), LATENCY.y(request.latency_ms / top_ms));
        let why = request.degraded.as_ref().map_or_else(String::new, |why| format!(", degraded: {}", escape(why)));
        let tip = format!(
            "<title>{:.1} s: {:.1} ms, {}{why}</title>",
            request.at_s,
            request.latency_ms,
            escape(&request.plan)
        );
        // In time: a dot. Late: a cross, so that colour is not all that tells.
        let _ = if request.answered && request.deadline_met {
            write!(
                svg,
                "<circle cx='{x:.1}' cy='{y:.1}' r='3' fill='{}' fill-opacity='.8'>{tip}</circle>",
                colour(request.placement)
            )
        } else {
            write!(
                svg,
                "<path d='M{:.1} {:.1}l8 8m0 -8l-8 8' stroke='var(--bad)' stroke-width='2.2'>{tip}</path>",
                x - 4.0,
                y - 4.0
            )
        };
    }
}

fn exit_panel(report: &Report, x: &impl Fn(f64) -> f64, svg: &mut String) {
    EXIT.frame(svg, "Exit taken: filled if the answer was right");
    let share = |exit: usize| (exit as f64 + 0.5) / report.exits.len().max(1) as f64;
    for (index, exit) in report.exits.iter().enumerate() {
        EXIT.tick(svg, share(index), &exit.name);
    }
    for request in report.requests.iter().filter(|request| request.answered) {
        let fill = if request.right { "var(--good)" } else { "var(--card)" };
        let _ = write!(
            svg,
            "<circle cx='{:.1}' cy='{:.1}' r='3.4' fill='{fill}' stroke='{}' stroke-width='1.5'/>",
            x(request.at_s),
            EXIT.y(share(request.exit)),
            if request.right { "var(--good)" } else { "var(--bad)" }
        );
    }
}

fn where_panel(report: &Report, x: &impl Fn(f64) -> f64, svg: &mut String) {
    WHERE.frame(svg, "Where it ran");
    for (index, request) in report.requests.iter().enumerate() {
        let until = report.requests.get(index + 1).map_or(report.seconds, |next| next.at_s);
        let _ = write!(
            svg,
            "<rect x='{:.1}' y='{}' width='{:.2}' height='{}' fill='{}'/>",
            x(request.at_s),
            WHERE.top,
            (x(until) - x(request.at_s)).max(0.6),
            WHERE.height,
            colour(request.placement)
        );
    }
}

/// A line through all panels for each event.
fn events_marks(report: &Report, x: &impl Fn(f64) -> f64, svg: &mut String) {
    for (index, (at_s, what)) in report.events.iter().enumerate() {
        let (x, number) = (x(*at_s), index + 1);
        let _ = write!(
            svg,
            "<path d='M{x:.1} {}V{}' stroke='var(--ink)' stroke-width='1.2' stroke-dasharray='2 3'/>\
             <circle cx='{x:.1}' cy='{}' r='8' fill='var(--ink)'><title>{at_s:.1} s: {}</title></circle>\
             <text x='{x:.1}' y='{}' text-anchor='middle' fill='var(--bg)' font-size='11' font-weight='700'>{number}</text>",
            RATE.top,
            WHERE.top + WHERE.height,
            RATE.top,
            escape(what),
            RATE.top + 4.0
        );
    }
}

fn legend() -> &'static str {
    "<ul class=legend><li><i style='background:var(--device)'></i>device only<li><i style='background:var(--split)'></i>split\
     <li><i style='background:var(--edge)'></i>edge only<li><i style='background:var(--ink)'></i>link rate\
     <li><i style='background:var(--estimate)'></i>the device's estimate (dashed)<li><i style='background:var(--bad)'></i>late (cross) or wrong (open ring); deadline (dashed)<li><i style='background:var(--ink)'></i>numbers: events, below</ul>"
}

fn exits_table(report: &Report) -> String {
    let rows = report.exits.iter().enumerate().map(|(index, exit)| {
        let taken: Vec<&RequestRow> = report.requests.iter().filter(|r| r.answered && r.exit == index).collect();
        let right = taken.iter().filter(|r| r.right).count();
        [
            escape(&exit.name),
            taken.len().to_string(),
            percent(taken.len(), report.requests.len()),
            percent(right, taken.len()),
            format!("{:.1} %", exit.accuracy * 100.0),
        ]
    });
    table(&["exit", "taken", "share", "right here", "right on validation"], rows)
}

fn places_table(report: &Report) -> String {
    let places =
        [(Placement::DeviceOnly, "device only"), (Placement::Split, "split"), (Placement::EdgeOnly, "edge only")];
    let rows = places.into_iter().map(|(placement, name)| {
        let here: Vec<&RequestRow> =
            report.requests.iter().filter(|r| r.answered && r.placement == placement).collect();
        let mut latencies: Vec<f64> = here.iter().map(|r| r.latency_ms).collect();
        let met = here.iter().filter(|r| r.deadline_met).count();
        let median = if here.is_empty() {
            "–".to_owned()
        } else {
            format!("{:.1} ms", crate::output::quantile(&mut latencies, 0.5))
        };
        [
            name.to_owned(),
            here.len().to_string(),
            percent(here.len(), report.requests.len()),
            median,
            percent(met, here.len()),
        ]
    });
    table(&["where", "requests", "share", "median", "in time"], rows)
}

fn versions_table(report: &Report) -> String {
    let mut versions: Vec<&str> = Vec::new();
    for request in report.requests.iter().filter(|request| request.answered) {
        if !versions.contains(&request.version.as_str()) {
            versions.push(&request.version);
        }
    }
    let rows = versions.into_iter().map(|version| {
        let of_it: Vec<&RequestRow> = report.requests.iter().filter(|r| r.answered && r.version == version).collect();
        let right = of_it.iter().filter(|r| r.right).count();
        let met = of_it.iter().filter(|r| r.deadline_met).count();
        [
            escape(version),
            of_it.len().to_string(),
            percent(of_it.len(), report.requests.len()),
            percent(right, of_it.len()),
            percent(met, of_it.len()),
        ]
    });
    table(&["version", "requests", "share", "right", "in time"], rows)
}

fn events_table(report: &Report) -> String {
    // From an event to the next one, or to the end.
    let rows = report.events.iter().enumerate().map(|(index, (at_s, what))| {
        let until = report.events.get(index + 1).map_or(f64::INFINITY, |(at_s, _)| *at_s);
        let until_then: Vec<&RequestRow> =
            report.requests.iter().filter(|r| r.at_s >= *at_s && r.at_s < until).collect();
        let answered = until_then.iter().filter(|r| r.answered).count();
        let met = until_then.iter().filter(|r| r.deadline_met).count();
        [
            (index + 1).to_string(),
            format!("{at_s:.1} s"),
            escape(what),
            format!("{answered} of {}", until_then.len()),
            percent(met, until_then.len()),
        ]
    });
    table(&["", "at", "event", "answered from then on", "in time"], rows)
}

/// A card with a table; the cells are markup.
pub(crate) fn table<const CELLS: usize>(head: &[&str; CELLS], rows: impl Iterator<Item = [String; CELLS]>) -> String {
    let head: String = head.iter().map(|cell| format!("<th>{cell}")).collect();
    let rows: String = rows.map(|row| format!("<tr>{}", row.map(|cell| format!("<td>{cell}")).concat())).collect();
    format!("<div class=card><table><thead><tr>{head}<tbody>{rows}</table></div>")
}

fn examples(report: &Report) -> String {
    let figure = |example: &Example| {
        let verdict = if example.right {
            format!("✓ {}", escape(&example.answer))
        } else {
            format!("<span class=wrong>✗ {}</span>, is {}", escape(&example.answer), escape(&example.truth))
        };
        format!(
            "<figure><img alt='{}' src='data:image/png;base64,{}'>{verdict}<br><span class=soft>{}</span></figure>",
            escape(&example.truth),
            base64(&example.png),
            escape(&example.plan)
        )
    };
    report.examples.iter().map(figure).collect()
}

fn colour(placement: Placement) -> &'static str {
    match placement {
        Placement::DeviceOnly => "var(--device)",
        Placement::Split => "var(--split)",
        Placement::EdgeOnly => "var(--edge)",
    }
}

fn percent(part: usize, all: usize) -> String {
    if all == 0 { "–".to_owned() } else { format!("{:.1} %", 100.0 * part as f64 / all as f64) }
}

/// Text from models, peers and files is not markup.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(requests: Vec<RequestRow>) -> Report {
        Report {
            title: "T".into(),
            model: "<script>alert('x')</script>".into(),
            seconds: 10.0,
            deadline_ms: 100.0,
            emulated_slowdown: 40.0,
            emulated_link: "a relay".into(),
            exits: vec![ExitInfo { name: "exit1".into(), accuracy: 0.8 }],
            requests,
            rate: vec![RatePoint { at_s: 0.0, rate_bps: 1e6 }],
            tiles: vec![],
            examples: vec![],
            events: vec![(5.0, "the edge is <killed>".into())],
        }
    }

    fn request(at_s: f64, deadline_met: bool) -> RequestRow {
        RequestRow {
            at_s,
            latency_ms: 50.0,
            deadline_met,
            answered: true,
            right: true,
            exit: 0,
            placement: Placement::Split,
            plan: "split".into(),
            version: "abc".into(),
            degraded: None,
            estimated_rate_bps: 1e6,
        }
    }

    #[test]
    fn every_request_is_on_the_page_and_names_are_not_markup() {
        let page = render(&report(vec![request(1.0, true), request(2.0, true), request(3.0, false)]));
        assert_eq!(page.matches("ms, split</title>").count(), 3);
        assert_eq!(page.matches("<circle").count(), 2 + 3 + 1);
        assert_eq!(page.matches("the edge is &lt;killed&gt;").count(), 2, "on the time line and in the table");
        assert!(page.contains("<td>abc<td>3<td>100.0 %<td>100.0 %<td>66.7 %"));
        assert!(!page.contains("<script"));
        assert!(page.contains("&lt;script&gt;"));
        assert!(render(&report(vec![])).contains("</svg>"));
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
