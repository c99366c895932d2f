use super::*;
use crate::daemon;
use crate::random::Random;
use std::collections::BTreeSet;

/// What `edgent-host` makes of a file, a variable each `NAME=VALUE`, and flags.
fn told(file: Option<&str>, variables: &[&str], flags: &[&str]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edgent.toml");
    let mut words: Vec<OsString> = flags.iter().map(OsString::from).collect();
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
        words.push(written(CONFIG, path.as_os_str()));
    }
    let environment = variables.iter().map(|variable| variable.split_once('=').unwrap());
    let environment = environment.map(|(name, value)| (name.into(), value.into())).collect();
    let command = daemon::command();
    let given = command.clone().no_binary_name(true).try_get_matches_from(words).map_err(|e| e.to_string())?;
    // As a reader of the messages would write the file's name.
    let short = |error: anyhow::Error| {
        assert!(error.is::<BadInput>(), "exit code 2: {error:#}");
        error.to_string().replace(path.to_str().unwrap(), "edgent.toml")
    };
    let config = Config::new(&command, &given, environment).map_err(short)?;
    daemon::check(&config).map_err(short)?;
    Ok(config)
}

fn setting(config: &Config, key: &str) -> (Vec<String>, String) {
    let setting = config.settings.iter().find(|setting| setting.key == key).unwrap();
    let origin = match &setting.origin {
        Origin::File(_, line) => format!("file:{line}"),
        other => other.to_string(),
    };
    (setting.values.iter().map(|value| value.to_str().unwrap().to_owned()).collect(), origin)
}

#[test]
fn every_flag_has_a_key_and_a_variable_of_its_own() {
    let command = daemon::command();
    let flags: Vec<&Arg> = command.get_arguments().filter(|arg| arg.get_long() != Some(CONFIG)).collect();
    assert!(flags.len() > 20, "{}", flags.len());
    let config = told(None, &[], &[]).unwrap();
    assert_eq!(config.settings.len(), flags.len(), "each flag is a setting: none without a long name");
    let keys: BTreeSet<_> = config.settings.iter().map(|setting| setting.key.as_str()).collect();
    assert_eq!(keys.len(), flags.len());
    for flag in flags {
        let (key, kind) = (key(flag), Kind::of(flag));
        // A value that the flag takes, in the file's words and the environment's.
        let (in_file, in_variable) = match (flag.get_possible_values().first(), kind.of, key.as_str()) {
            (Some(value), Type::Text, _) => (format!("{:?}", value.get_name()), value.get_name().to_owned()),
            (_, Type::Switch, _) => ("true".to_owned(), "true".to_owned()),
            (_, Type::Whole | Type::Number, _) => ("1".to_owned(), "1".to_owned()),
            (_, Type::Text, "strategy") => ("\"paper\"".to_owned(), "paper".to_owned()),
            (_, Type::Text, "pair") => ("\"ask\"".to_owned(), "ask".to_owned()),
            (_, Type::Text, _) => ("\"localhost:1\"".to_owned(), "localhost:1".to_owned()),
        };
        // The one that needs another one beside it.
        let beside: &[&str] = if key == "announce" { &["--listen", "10.0.0.1:1"] } else { &[] };
        let by_file = told(Some(&format!("\n{key} = {in_file}")), &[], beside).unwrap();
        assert_eq!(setting(&by_file, &key), (vec![in_variable.clone()], "file:2".to_owned()));
        let name = variable(&key);
        let by_variable = told(None, &[&format!("{name}={in_variable}")], beside).unwrap();
        assert_eq!(setting(&by_variable, &key), (vec![in_variable], name));
    }
}

/// A file, variables, flags; the setting that is looked at, its values and its origin.
type Case<'a> = (Option<&'a str>, &'a [&'a str], &'a [&'a str], &'a str, &'a [&'a str], &'a str);

#[test]
fn a_flag_goes_before_a_variable_and_that_before_the_file_and_that_before_the_default() {
    let (file, variable, flag) = ("deadline_ms = 1\ntls = true\nedge = ['a:1', 'b:2']", "EDGENT_DEADLINE_MS=2", "3");
    let cases: [Case<'_>; 13] = [
        (Some(file), &[variable], &["--deadline-ms", flag], "deadline_ms", &["3"], "--deadline-ms"),
        (Some(file), &[variable], &[], "deadline_ms", &["2"], "EDGENT_DEADLINE_MS"),
        (Some(file), &["EDGENT_DEADLINE_MS="], &[], "deadline_ms", &["1"], "file:1"),
        (None, &[], &[], "deadline_ms", &["100"], "default"),
        (None, &[], &[], "http", &[], "default"),
        (Some(file), &[], &["--tls=false"], "tls", &["false"], "--tls"),
        (Some(file), &["EDGENT_TLS=false"], &["--insecure"], "tls", &["false"], "EDGENT_TLS"),
        (None, &[], &["--tls"], "tls", &["true"], "--tls"),
        (Some(file), &[], &[], "edge", &["a:1", "b:2"], "file:3"),
        // One source says it all: lists are not joined.
        (Some(file), &["EDGENT_EDGE=c:3,d:4"], &[], "edge", &["c:3", "d:4"], "EDGENT_EDGE"),
        (Some("edge = 'a:1'"), &[], &[], "edge", &["a:1"], "file:1"),
        (Some("macs_max = 0x10"), &[], &[], "macs_max", &["16"], "file:1"),
        (Some("macs_max = 1_000"), &[], &[], "macs_max", &["1000"], "file:1"),
    ];
    for (file, variables, flags, key, values, origin) in cases {
        let config = told(file, variables, flags).unwrap();
        let wanted = (values.iter().map(|value| (*value).to_owned()).collect(), origin.to_owned());
        assert_eq!(setting(&config, key), wanted, "{file:?} {variables:?} {flags:?}");
    }
    // What clap reads at last is what is in force.
    let config = told(Some("deadline_ms = 7\nidentity = 'where it is'"), &[], &[]).unwrap();
    let given = daemon::command().no_binary_name(true);
    let words = config.settings.iter().flat_map(|s| s.values.iter().map(|v| written(&s.key.replace('_', "-"), v)));
    let read = given.try_get_matches_from(words).unwrap();
    assert_eq!(read.get_one::<f64>("deadline_ms"), Some(&7.0));
    assert_eq!(read.get_one::<PathBuf>("identity"), Some(&PathBuf::from("where it is")));
}

#[test]
fn what_cannot_be_is_refused_by_file_line_and_key() {
    let cases = [
        ("\n\ndeadlin_ms = 3", "edgent.toml:3: 'deadlin_ms' is no setting; the settings are agent_check,"),
        ("config = 'other.toml'", "edgent.toml:1: 'config' is no setting"),
        ("[device]\nlisten = 'a:1'", "edgent.toml:1: 'device' is no setting"),
        ("deadline_ms = '3'", "edgent.toml:1: deadline_ms must be a number, not a string"),
        ("workers = 1.5", "edgent.toml:1: workers must be a whole number, not a number with a fraction"),
        ("tls = 1", "edgent.toml:1: tls must be true or false, not a whole number"),
        ("listen = ['a:1']", "edgent.toml:1: listen must be a string, not an array"),
        ("edge = [['a:1']]", "edgent.toml:1: edge must be a string or an array of strings, not an array"),
        ("edge = { first = 'a:1' }", "edgent.toml:1: edge must be a string or an array of strings, not a table"),
        (
            "# \ndeadline_ms = 0",
            "edgent.toml:2: deadline_ms cannot be '0': must be a number over 0 and at most 3600000",
        ),
        ("deadline_ms = nan", "edgent.toml:1: deadline_ms cannot be 'nan'"),
        ("deadline_ms = -inf", "edgent.toml:1: deadline_ms cannot be '-inf'"),
        ("codec_loss_max = 1.01", "edgent.toml:1: codec_loss_max cannot be '1.01': must be within 0 and 1"),
        ("confined_cpu_s = 0", "edgent.toml:1: confined_cpu_s cannot be '0': 0 is not in 1..="),
        ("workers = -1", "edgent.toml:1: workers cannot be '-1': must be a whole number from 0 to 1024"),
        ("macs_max = 99999999999999999999", "edgent.toml:1: macs_max cannot be '99999999999999999999'"),
        ("role = 'cloud'", "edgent.toml:1: role must be one of device, edge, not 'cloud'"),
        ("strategy = 'best'", "edgent.toml:1: strategy cannot be 'best': the strategies are edgent,"),
        ("listen = 'here'", "edgent.toml:1: listen cannot be 'here': an address is HOST:PORT"),
        ("edge = ['a:1', '::1:80']", "edgent.toml:1: edge cannot be '::1:80'"),
        ("http = 'a:70000'", "edgent.toml:1: http cannot be 'a:70000'"),
        ("store = ''", "edgent.toml:1: store must not be empty"),
        ("role = 'edge'\nmemory_max_mib = 10", "edgent.toml:2: memory_max_mib is for a device"),
        ("role = 'edge'\nreconnect_s = 60", "edgent.toml:2: reconnect_s is for a device"),
        ("role = 'edge'\ndiscover = true", "edgent.toml:2: discover is for a device"),
        ("announce = true\nrole = 'device'", "edgent.toml:1: announce is for an edge"),
        ("discover = true\ninsecure = true", "edgent.toml:1: discover and edgent.toml:2: insecure exclude each other"),
        ("announce = true", "edgent.toml:1: announce needs an address that other machines reach: 127.0.0.1:7400"),
        ("listen = '[::1]:0'\nannounce = true", "edgent.toml:2: announce needs an address that other machines reach"),
        ("reconnect_s = 0.5", "edgent.toml:1: reconnect_s cannot be '0.5': must be a number of seconds from 1 to"),
        ("tls = true\ninsecure = true", "edgent.toml:1: tls and edgent.toml:2: insecure exclude each other"),
        ("tls = true\n\ntls = true", "edgent.toml:3: duplicate key"),
        ("tls = true\nlisten = \"", "edgent.toml:2: "),
    ];
    for (text, wanted) in cases {
        let error = told(Some(text), &[], &[]).expect_err(text);
        assert!(error.starts_with(wanted), "{text:?}: {error}");
    }
    let error = told(Some("\nemulate_slowdown = 2\nemulate_profile = 'pi.json'"), &[], &[]).expect_err("two devices");
    assert!(error.contains("cannot be used with") && error.contains("edgent.toml:3: emulate_profile"), "{error}");
    assert!(told(Some("emulate_profile = 'pi.json'"), &[], &[]).is_ok(), "a default excludes nothing");
    let long = format!("# {}", "x".repeat(256 << 10));
    assert!(told(Some(&long), &[], &[]).expect_err("too long").contains("larger than 262144 bytes"));
    let error = told(None, &["EDGENT_DEADLINE_MS=soon"], &[]).expect_err("a variable");
    assert!(error.starts_with("EDGENT_DEADLINE_MS: deadline_ms cannot be 'soon'"), "{error}");
    let error = told(None, &["EDGENT_ROLE=edge"], &["--memory-max-mib", "3"]).expect_err("a flag");
    assert!(error.starts_with("--memory-max-mib is for a device"), "{error}");
    let error = told(None, &["EDGENT_CONFIG=/nowhere/edgent.toml"], &[]).expect_err("no file");
    assert!(error.starts_with("/nowhere/edgent.toml: "), "{error}");
}

#[test]
fn variables_that_are_no_settings_are_told() {
    let strays = told(None, &["EDGENT_DEADLIN_MS=3", "EDGENT_ROLE=edge", "HOME=/"], &[]).unwrap().strays;
    assert_eq!(strays, ["EDGENT_DEADLIN_MS"]);
}

/// F34: whatever stands in a field, it is taken or refused by its place and name.
#[test]
fn no_field_is_misread_whatever_it_says() {
    const TRIES: u64 = 5_000;
    let command = daemon::command();
    let keys: Vec<String> = arguments(&command).map(key).collect();
    let values = [
        "0",
        "-1",
        "1",
        "1e400",
        "1e-400",
        "nan",
        "inf",
        "0.5",
        "9223372036854775807",
        "-9223372036854775808",
        "0xffffffffffffffff",
        "18446744073709551616",
        "true",
        "false",
        "''",
        "' '",
        "'-'",
        "'--tls'",
        "'a:1'",
        "'[::1]:1'",
        "'device'",
        "'edge'",
        "'=x'",
        "'a,b'",
        "\"\\u0000\"",
        "\"\\n\"",
        "\"\\U0010FFFF\"",
        "1979-05-27",
        "[]",
        "[[]]",
        "['a:1', 1]",
        "['ask', 'push']",
        "{}",
        "{ a = 1 }",
        "'''\n'''",
        "1 2",
        "",
        "[",
        "\"",
        "= 1",
    ];
    let mut random = Random::new(34);
    let mut refused = 0;
    let path = Path::new("edgent.toml");
    for _ in 0..TRIES {
        let at = random.below(4) as usize;
        let name = &keys[random.below(keys.len() as u64) as usize];
        let mut value = values[random.below(values.len() as u64) as usize].to_owned();
        if random.below(2) == 0 && !value.is_empty() {
            value = String::from_utf8_lossy(&random.flipped(value.as_bytes())).into_owned();
        }
        let text = format!("{}{name} = {value}\n", "#\n".repeat(at));
        let Ok(mut said) = file::said(&text, path, &command) else {
            let error = file::said(&text, path, &command).unwrap_err();
            // A value can go on behind its line.
            let begins = error.split_once(": ").and_then(|(place, _)| place.strip_prefix("edgent.toml:"));
            assert!(begins.is_some_and(|line| line.parse::<usize>().is_ok_and(|line| line > at)), "{text:?}: {error}");
            refused += 1;
            continue;
        };
        let arg = arguments(&command).find(|arg| key(arg) == *name).unwrap();
        let Some((values, origin)) = said.remove(name) else { continue };
        assert_eq!(origin, place(path, at + 1));
        refused += u64::from(values.iter().any(|value| check(arg, value).is_err()));
    }
    assert!((TRIES / 2..TRIES).contains(&refused), "{refused} of {TRIES}: what is good is taken, most is not");
}
