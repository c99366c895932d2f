//! What is drawn, and the terminal that it is drawn on.

use super::look::{Look, Plan};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, BufRead, Write, stdin, stdout};
use std::thread;
use tokio::sync::mpsc;

/// Another page, so that the terminal's own comes back; without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
const REVERSE: &str = "\x1b[7m";
const PLAIN: &str = "\x1b[m";

const CONTROL_C: u8 = 3;
const ESCAPE: u8 = 0x1b;

/// Typed faster than the screen is drawn.
const KEYS_WAITING_MAX: usize = 16;

/// What may be typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    Quit,
}

/// A line, and whether it stands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) stands_out: bool,
}

/// All that is shown: a row for each host, and more of the one that is selected.
pub(super) fn frame(hosts: &[Look], selected: Option<usize>, columns: usize, rows: usize) -> Vec<Line> {
    let mut lines = vec![(
        row(["HOST", "ROLE", "MODEL", "REQ/S", "P50", "P99", "DEADLINE", "IN TIME", "DEGRADED", "FAULTS", "QUEUE"]),
        true,
    )];
    for (at, host) in hosts.iter().enumerate() {
        lines.push((summary(host), selected == Some(at)));
    }
    let shown = match selected {
        Some(at) => hosts.get(at).map(std::slice::from_ref).unwrap_or_default(),
        None => hosts,
    };
    for host in shown {
        lines.push((String::new(), false));
        lines.extend(details(host).into_iter().map(|text| (text, false)));
    }
    if selected.is_some() {
        lines.truncate(rows.saturating_sub(1));
        lines.push(("q quits, up and down choose a host".to_owned(), false));
    }
    let visible = |(text, stands_out): (String, bool)| {
        // Names are the hosts' own: nothing in them steers this terminal.
        let text = text.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).take(columns).collect();
        Line { text, stands_out }
    };
    lines.into_iter().take(rows).map(visible).collect()
}

fn summary(host: &Look) -> String {
    if let Some(why) = &host.away {
        return format!("{:<28} away: {why}", host.address);
    }
    let counts = &host.counts;
    let share = if counts.requests == 0 { None } else { Some(counts.deadline_met as f64 / counts.requests as f64) };
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
    row([
        &host.address,
        &host.role,
        &host.model,
        &host.requests_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
        &ms(host.latencies.map(|latencies| latencies.p50_ms)),
        &ms(host.latencies.map(|latencies| latencies.p99_ms)),
        &ms(host.deadline_ms),
        &share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0)),
        &counts.degraded.to_string(),
        &counts.faults.to_string(),
        &counts.in_flight.to_string(),
    ])
}

fn row([host, role, model, rate, p50, p99, deadline, in_time, degraded, faults, queue]: [&str; 11]) -> String {
    format!(
        "{host:<28} {role:<6} {model:<18} {rate:>7} {p50:>9} {p99:>9} {deadline:>10} {in_time:>8} {degraded:>8} {faults:>6} {queue:>5}"
    )
}

fn details(host: &Look) -> Vec<String> {
    let counts = &host.counts;
    let mut lines = vec![
        format!("{}  {} {}", host.address, host.model, host.version),
        format!(
            "requests   {}, {} answered, {} in time, {} degraded, {} errors, in {:.0} s",
            counts.requests, counts.answered, counts.deadline_met, counts.degraded, counts.errors, host.uptime_s
        ),
    ];
    if let Some(Plan { exit, cut, direction, placement, codec, epoch, predicted_ms, in_time }) = &host.plan {
        let predicted = predicted_ms.map_or_else(String::new, |ms| format!(", {ms:.1} ms predicted"));
        let likely = in_time * 100.0;
        lines.push(format!("plan       exit {exit}, cut {cut}, {placement}, {direction}, {codec}, epoch {epoch}{predicted}, {likely:.0} % likely in time; {} changes", counts.plan_changes));
    }
    match host.edge_is_connected {
        Some(true) => lines.push(format!(
            "edge       connected, {:.3} Mbit/s, {:.1} ms there and back",
            host.rate_bps as f64 / 1e6,
            host.rtt_ms
        )),
        Some(false) => lines.push("edge       away".to_owned()),
        None => {}
    }
    if let (Some(exits), Some(latencies)) = (&host.exits, host.latencies) {
        let exits: Vec<String> = exits.iter().map(|(exit, answers)| format!("exit {exit}: {answers}")).collect();
        lines.push(format!("answers    {} of the last {}", exits.join(", "), latencies.answers));
    }
    if counts.faults + counts.quarantined > 0 {
        lines.push(format!("faults     {} of segments, {} versions quarantined", counts.faults, counts.quarantined));
    }
    lines
}

/// The terminal, until this is dropped: then it is as it was.
pub(super) struct Screen {
    saved: Termios,
    keys: mpsc::Receiver<Key>,
}

impl Screen {
    pub(super) fn enter() -> io::Result<Self> {
        let saved = tcgetattr(stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        let (to, keys) = mpsc::channel(KEYS_WAITING_MAX);
        // From here on, what goes wrong puts the terminal right again.
        let screen = Self { saved, keys };
        // It waits for a key for ever, and ends with the process.
        thread::Builder::new().name("edgent-keys".to_owned()).spawn(move || read_keys(stdin().lock(), &to))?;
        write!(stdout(), "{ENTER}")?;
        Ok(screen)
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        // A terminal that does not say is as they once all were.
        tcgetwinsize(stdout())
            .ok()
            .filter(|size| size.ws_col > 0 && size.ws_row > 0)
            .map_or((80, 24), |size| (usize::from(size.ws_col), usize::from(size.ws_row)))
    }

    pub(super) fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut text = HOME.to_owned();
        for (at, Line { text: line, stands_out }) in lines.iter().enumerate() {
            let (begin, end) = if *stands_out { (REVERSE, PLAIN) } else { ("", "") };
            // No line after the last: the page would move up.
            let next = if at == 0 { "" } else { "\r\n" };
            text += &format!("{next}{begin}{line}{end}{CLEAR_LINE}");
        }
        let mut stdout = stdout().lock();
        write!(stdout, "{text}{CLEAR_BELOW}")?;
        stdout.flush()
    }

    /// The next key; the end of what is typed is the end of all.
    pub(super) async fn key(&mut self) -> Key {
        self.keys.recv().await.unwrap_or(Key::Quit)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing more can be done for a terminal that is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.saved);
        let _ = write!(stdout(), "{LEAVE}");
        let _ = stdout().flush();
    }
}

fn read_keys(typed: impl BufRead, to: &mpsc::Sender<Key>) {
    let mut typed = typed.bytes().map_while(Result::ok);
    while let Some(byte) = typed.next() {
        let key = match byte {
            b'q' | CONTROL_C => Key::Quit,
            b'k' => Key::Up,
            b'j' => Key::Down,
            ESCAPE if typed.next().is_some_and(|byte| byte == b'[' || byte == b'O') => match typed.next() {
                Some(b'A') => Key::Up,
                Some(b'B') => Key::Down,
                _ => continue,
            },
            _ => continue,
        };
        if to.blocking_send(key).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn a_frame_fits_the_screen_and_nothing_in_it_steers_the_terminal() {
        let device =
            Look { address: "http://d:1".to_owned(), model: "\x1b]0;gotcha\x07".to_owned(), ..Look::default() };
        let edge = Look { address: "e:1".to_owned(), away: Some("it has ended".to_owned()), ..Look::default() };
        let hosts = [device, edge];
        let whole = frame(&hosts, Some(1), 120, 40);
        assert_eq!(whole[2].text, "e:1                          away: it has ended");
        assert_eq!(whole.iter().map(|line| line.stands_out).collect::<Vec<_>>()[..3], [true, false, true]);
        for (columns, rows) in [(120, 40), (20, 3), (1, 1), (0, 0)] {
            let drawn = frame(&hosts, Some(0), columns, rows);
            assert!(drawn.len() <= rows, "{columns} by {rows}");
            assert!(drawn.iter().all(|line| line.text.chars().count() <= columns));
            assert!(!texts(&drawn).concat().contains(char::is_control));
        }
        assert!(texts(&frame(&hosts, None, 120, usize::MAX)).iter().any(|line| line.contains("?]0;gotcha?")));
    }

    #[test]
    fn keys_are_read_whatever_else_is_typed() {
        let (to, mut keys) = mpsc::channel(KEYS_WAITING_MAX);
        read_keys(&b"x\x1b[A\x1b[C\x1bOBkj\x03"[..], &to);
        drop(to);
        let read: Vec<Key> = std::iter::from_fn(|| keys.blocking_recv()).collect();
        assert_eq!(read, [Key::Up, Key::Down, Key::Up, Key::Down, Key::Quit]);
    }
}
