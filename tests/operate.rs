//! What operators do with the two programs: settings, completions, manuals, a service manager, a look at what runs.
#![allow(clippy::unwrap_used, missing_docs)]

use edgent_cli::hosts::HostProcess;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

const EDGENT: &str = env!("CARGO_BIN_EXE_edgent");
const EDGENT_HOST: &str = env!("CARGO_BIN_EXE_edgent-host");

/// Long enough for a busy machine, short enough to notice a hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("operate").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A small bundle for all tests.
fn bundle() -> &'static str {
    static BUNDLE: OnceLock<String> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let dir = scratch("bundle").join("branching");
        let onnx = project().join("host/nn/tests/data/branching.onnx");
        edgent(&["build", onnx.to_str().unwrap(), "--out", dir.to_str().unwrap()]);
        dir.to_str().unwrap().to_owned()
    })
}

fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let output = Command::new(program).args(arguments).envs(variables.iter().copied()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn edgent(arguments: &[&str]) -> Value {
    let (code, stdout, stderr) = run(EDGENT, &[arguments, &["--json"]].concat(), &[]);
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{arguments:?} printed {stdout:?}: {e}"))
}

#[test]
fn what_is_in_force_is_shown_with_who_said_so_as_a_file_would_say_it() {
    let file = scratch("show").join("edgent.toml");
    std::fs::write(&file, "role = 'device'\nedge = ['a:1', 'b:2']\ndeadline_ms = 40\n").unwrap();
    let file = file.to_str().unwrap();
    let arguments = ["config", "show", "--origin", "--config", file, "--tls", "--json"];
    let (code, stdout, stderr) = run(EDGENT, &arguments, &[("EDGENT_DEADLINE_MS", "50")]);
    assert_eq!(code, 0, "{stderr}");
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(shown["config"], file);
    let setting = |key: &str| {
        let rows = shown["settings"].as_array().unwrap();
        rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("no {key}")).clone()
    };
    let row = |key, value, origin, from| json!({ "key": key, "value": value, "origin": origin, "from": from });
    assert_eq!(setting("tls"), row("tls", json!(true), "flag", json!("--tls")));
    assert_eq!(setting("deadline_ms"), row("deadline_ms", json!(50.0), "variable", json!("EDGENT_DEADLINE_MS")));
    assert_eq!(setting("edge"), row("edge", json!(["a:1", "b:2"]), "file", json!(format!("{file}:2"))));
    assert_eq!(setting("workers"), row("workers", json!(0), "default", Value::Null));
    assert_eq!(setting("http"), row("http", Value::Null, "default", Value::Null));

    // What is shown to people is a file that says the same.
    let (code, stdout, stderr) = run(EDGENT, &["config", "show", "--origin", "--config", file], &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains(&format!("# {file}:3")), "{stdout}");
    let again = scratch("shown").join("again.toml");
    std::fs::write(&again, &stdout).unwrap();
    let shown = edgent(&["config", "show", "--config", again.to_str().unwrap()]);
    let values = |shown: &Value| -> Vec<Value> {
        shown["settings"].as_array().unwrap().iter().map(|row| row["value"].clone()).collect()
    };
    assert_eq!(values(&shown), values(&edgent(&["config", "show", "--config", file])));
}

#[test]
fn a_host_ends_with_2_on_settings_that_cannot_be_and_says_where() {
    let file = scratch("bad").join("edgent.toml");
    std::fs::write(&file, "role = 'edge'\n\ndeadline_ms = 'soon'\n").unwrap();
    let file = file.to_str().unwrap();
    for (program, arguments) in
        [(EDGENT_HOST, vec!["--config", file]), (EDGENT, vec!["config", "show", "--config", file])]
    {
        let (code, stdout, stderr) = run(program, &arguments, &[]);
        let wanted = format!("error: {file}:3: deadline_ms must be a number, not a string\n");
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (2, "", wanted.as_str()));
    }
    let (code, _, stderr) = run(EDGENT_HOST, &["--store", "/nowhere"], &[]);
    assert_eq!(code, 2);
    assert!(stderr.contains("give --role, EDGENT_ROLE, or 'role' in the file of --config"), "{stderr}");
    let (code, _, stderr) = run(EDGENT_HOST, &[], &[("EDGENT_ROLE", "edge")]);
    assert_eq!(code, 2);
    assert!(stderr.contains("there is nothing to serve"), "{stderr}");
}

/// A host under a service manager: what it is told, and what it tells.
struct Managed {
    child: Child,
    told: UnixDatagram,
    /// Of the socket: its name must be short, wherever this project lies.
    _folder: TempDir,
}

impl Managed {
    fn start(variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("notify");
        let told = UnixDatagram::bind(&socket).unwrap();
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(EDGENT_HOST)
            .args(arguments)
            .env("NOTIFY_SOCKET", &socket)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, told, _folder: folder }
    }

    fn next(&self) -> String {
        let mut message = [0; 256];
        let read = self.told.recv(&mut message).expect("the service manager is told nothing");
        String::from_utf8_lossy(&message[..read]).trim_end().to_owned()
    }

    fn next_other_than(&self, ignored: &str) -> String {
        std::iter::repeat_with(|| self.next()).find(|told| told != ignored).unwrap()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_host_with_a_file_serves_and_tells_its_service_manager_how_it_fares() {
    use rustix::process::Signal;
    let file = scratch("managed-file").join("edgent.toml");
    let settings = format!("role = 'edge'\nlisten = '127.0.0.1:0'\nmodel = '{}'\n", bundle());
    std::fs::write(&file, settings).unwrap();
    let variables = [("WATCHDOG_USEC", "200000"), ("EDGENT_CONFIG", file.to_str().unwrap())];
    let mut host = Managed::start(&variables, &[]);
    assert_eq!(host.next(), "READY=1");
    let mut line = String::new();
    BufReader::new(host.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(edgent(&["status", &address])["serving"][0]["model"], "branching");

    assert_eq!((host.next(), host.next()), ("WATCHDOG=1".to_owned(), "WATCHDOG=1".to_owned()));
    host.signal(Signal::HUP);
    assert_eq!(host.next_other_than("WATCHDOG=1"), "RELOADING=1");
    assert_eq!(host.next_other_than("WATCHDOG=1"), "READY=1");
    host.signal(Signal::TERM);
    assert_eq!(host.next_other_than("WATCHDOG=1"), "STOPPING=1");
    assert!(host.child.wait().unwrap().success());
}

#[test]
fn shells_and_man_know_both_programs() {
    for (program, flag, subcommand) in [("edgent", "--slowdown", "rollback"), ("edgent-host", "--emulate-slowdown", "")]
    {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let told = edgent(&["completions", shell, "--program", program]);
            let script = told["script"].as_str().unwrap();
            // Fish names flags without their hyphens.
            let named = script.contains(flag) || shell == "fish" && script.contains(flag.trim_start_matches('-'));
            assert!(named && script.contains(subcommand), "{program} {shell}: {script}");
        }
    }
    let dir = scratch("man");
    let told = edgent(&["man", dir.to_str().unwrap()]);
    let pages: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(told["pages"], pages.len());
    for (page, says) in [
        ("edgent.1", "edgent\\-bench"),
        ("edgent-bench-sandbox.1", "json"),
        ("edgent-push.1", "trial"),
        ("edgent-host.8", "memory\\-max\\-mib"),
    ] {
        let text = std::fs::read_to_string(dir.join(page)).unwrap_or_else(|e| panic!("{page}: {e}; {pages:?}"));
        assert!(text.contains(says), "{page} does not say {says}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_tells_once_where_there_is_no_terminal() {
    let arguments = ["--role", "device", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--model", bundle()];
    let device = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let (link, http) = (device.address().to_string(), format!("http://{}", device.http().unwrap()));
    let told = edgent(&["top", &link, &http, "127.0.0.1:1"]);
    let [by_link, by_http, away] = told["hosts"].as_array().unwrap().as_slice() else { panic!("{told}") };
    for host in [by_link, by_http] {
        assert_eq!(
            (&host["role"], &host["model"], &host["away"]),
            (&json!("device"), &json!("branching"), &Value::Null)
        );
        assert_eq!(host["requests_per_s"], 0.0);
        assert_eq!((&host["plan"]["placement"], &host["deadline_ms"]), (&json!("device-only"), &json!(100.0)));
        assert_eq!((&host["latencies"], &host["exits"]), (&Value::Null, &json!({})), "nobody has asked for anything");
    }
    for said in ["exit", "cut", "direction", "codec", "epoch"] {
        assert_eq!(by_link["plan"][said], by_http["plan"][said], "{said}");
    }
    assert!(away["away"].as_str().unwrap().contains("127.0.0.1:1"), "{away}");

    let (code, stdout, _) = run(EDGENT, &["top", &http], &[]);
    assert_eq!(code, 0);
    assert!(stdout.contains("device-only") && !stdout.contains('\x1b'), "{stdout}");
    assert!(device.end().await.unwrap().success());
    let (code, _, stderr) = run(EDGENT, &["top", &http], &[]);
    assert!(code == 1 && stderr.contains(&http), "{stderr}");
}
