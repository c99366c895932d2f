//! `edgent top`: what running hosts do, as it happens.

mod look;
mod screen;
mod watch;

use crate::identity::Connection;
use crate::output::{BadInput, Output};
use anyhow::{Result, bail};
pub(crate) use look::Counts;
use look::Look;
use screen::{Key, Screen, frame};
use serde::Serialize;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as channel;

/// As many as anybody looks at.
const HOSTS_MAX: usize = 64;

/// How often the screen is drawn when nothing happens.
const DRAW_EVERY: Duration = Duration::from_millis(500);

/// How long hosts may take to tell what they do, where it is told once.
const ONCE: Duration = Duration::from_secs(10);

/// Where there is no terminal to ask.
const COLUMNS: usize = 160;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Hosts: HOST:PORT of their link, or http://HOST:PORT where they listen for HTTP.
    #[arg(value_name = "ADDR", default_value = "127.0.0.1:7400")]
    hosts: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct Report {
    hosts: Vec<Look>,
}

/// A screen where there is one; otherwise what the hosts do now, once.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    if arguments.hosts.len() > HOSTS_MAX {
        return Err(BadInput::error(format!("at most {HOSTS_MAX} hosts")));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let watched = watch::all(&arguments.hosts, &arguments.connection)?;
        let is_live = !output.is_json() && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
        if is_live { live(watched).await } else { once(watched, output).await }
    })
}

async fn once(mut watched: Vec<channel::Receiver<Look>>, output: &Output) -> Result<()> {
    let all_told = async {
        for one in &mut watched {
            let _ = one.wait_for(|look| look.away.is_some() || look.requests_per_s.is_some()).await;
        }
    };
    let _ = tokio::time::timeout(ONCE, all_told).await;
    let hosts = now(&watched);
    for line in frame(&hosts, None, COLUMNS, usize::MAX) {
        output.line(line.text);
    }
    let away: Vec<String> = hosts.iter().filter_map(Look::trouble).collect();
    let none_told = away.len() == hosts.len();
    output.result(&Report { hosts })?;
    if none_told {
        bail!("{}", away.join("; "));
    }
    Ok(())
}

async fn live(watched: Vec<channel::Receiver<Look>>) -> Result<()> {
    let mut resized = signal(SignalKind::window_change())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut every = tokio::time::interval(DRAW_EVERY);
    let mut screen = Screen::enter()?;
    let mut selected = 0;
    loop {
        let (columns, rows) = screen.size();
        screen.draw(&frame(&now(&watched), Some(selected), columns, rows))?;
        tokio::select! {
            _ = every.tick() => {}
            _ = resized.recv() => {}
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            key = screen.key() => match key {
                Key::Up => selected = selected.saturating_sub(1),
                Key::Down => selected = (selected + 1).min(watched.len() - 1),
                Key::Quit => return Ok(()),
            }
        }
    }
}

fn now(watched: &[channel::Receiver<Look>]) -> Vec<Look> {
    watched.iter().map(|one| one.borrow().clone()).collect()
}
