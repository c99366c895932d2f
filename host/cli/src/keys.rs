//! `edgent keygen` and `edgent sign`, and who signed a bundle.
//!
//! Keys and signatures are those of `minisign`: each of the two programs takes the other's.

use crate::output::{BadInput, Output};
use anyhow::{Context, Result};
use edgent_bundle::{Bundle, PublicKey, Signature, Statement, Store};
use minisign::{KeyPair, SecretKey, SecretKeyBox};
use serde::Serialize;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Cursor, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest key or password file that is read.
const FILE_BYTES_MAX: u64 = 4 << 10;

/// How `minisign` marks, behind `Ed`, that a secret key is encrypted by scrypt: the line's first letters.
const ENCRYPTED: &str = "RWRTY";

#[derive(clap::Args)]
pub(crate) struct Keygen {
    /// Where the keys go: NAME.key, which stays with you, and NAME.pub, which is for everybody.
    #[arg(long, value_name = "NAME", default_value = "edgent")]
    out: PathBuf,
    /// Keep the secret key as it is: whoever has the file can sign.
    #[arg(long, conflicts_with = "password_file")]
    no_password: bool,
    /// File whose first line is the password; without it, the terminal is asked.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Sign {
    /// The bundle's folder, or FOLDER@NAME:VERSION; the signature goes into it.
    bundle: PathBuf,
    /// The file of `edgent keygen` or of `minisign -G`.
    #[arg(long, value_name = "FILE")]
    secret_key: PathBuf,
    /// Which version of the model this is, by your own count from 1 on.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    version: u64,
    /// Hosts that have this version in force run none of yours below this one any more, whoever asks them to. By
    /// default the version before: one step back stays possible.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    minimum_version: Option<u64>,
    /// File whose first line is the secret key's password; without it, the terminal is asked.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Write what is signed here, too, and the signature beside it: `minisign -V -m FILE` looks at both.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Generated {
    key_id: String,
    public_key: String,
    public_key_file: PathBuf,
    secret_key_file: PathBuf,
}

/// Somebody's signature of a bundle.
#[derive(Serialize)]
pub(crate) struct Signer {
    key_id: String,
    version: u64,
    minimum_version: u64,
    /// None if no key with this id was given to look.
    pub(crate) holds: Option<bool>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

pub(crate) fn keygen(arguments: &Keygen, output: &Output) -> Result<()> {
    let file = |extension: &str| {
        let mut name = arguments.out.clone().into_os_string();
        name.push(extension);
        PathBuf::from(name)
    };
    let (secret_file, public_file) = (file(".key"), file(".pub"));
    for taken in [&secret_file, &public_file] {
        if taken.exists() {
            return Err(BadInput::error(format!("{} is there already; give another --out", taken.display())));
        }
    }
    let pair = if arguments.no_password {
        KeyPair::generate_unencrypted_keypair()
    } else {
        let password = password(arguments.password_file.as_deref(), "Password for the new secret key: ")?;
        if arguments.password_file.is_none() && ask("The same once more: ")? != password {
            return Err(BadInput::error("the passwords are not the same"));
        }
        KeyPair::generate_encrypted_keypair(Some(password))
    };
    let KeyPair { pk, sk } = pair.context("making the keys")?;
    let public = PublicKey::read(&pk.to_base64())?;
    let comment = format!("edgent secret key {}", public.id());
    // The secret first: a public key whose secret could not be kept would be of no use.
    write_new(
        &secret_file,
        sk.to_box(Some(comment.as_str())).context("writing the key")?.into_string().as_bytes(),
        0o600,
    )?;
    let text = format!("untrusted comment: edgent public key {}\n{}\n", public.id(), pk.to_base64());
    write_new(&public_file, text.as_bytes(), 0o644)?;
    let generated = Generated {
        key_id: public.id().to_string(),
        public_key: pk.to_base64(),
        public_key_file: public_file,
        secret_key_file: secret_file,
    };
    output.line(format_args!("key {}", generated.key_id));
    output.line(format_args!("{}  keep it to yourself, and a copy elsewhere", generated.secret_key_file.display()));
    output.line(format_args!("{}  give it to who shall trust you:", generated.public_key_file.display()));
    output.line(&generated.public_key);
    output.result(&generated)
}

pub(crate) fn sign(arguments: &Sign, output: &Output) -> Result<()> {
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    let minimum_version = arguments.minimum_version.unwrap_or((arguments.version - 1).max(1));
    let secret = secret(&arguments.secret_key, arguments.password_file.as_deref())?;
    let signature = sign_bundle(&bundle, &secret, arguments.version, minimum_version)?;
    if let Some(file) = &arguments.out {
        let mut beside = file.clone().into_os_string();
        beside.push(minisign::SIG_SUFFIX);
        let said = |path: &Path, e| BadInput::error(format!("{}: {e}", path.display()));
        fs::write(file, signature.statement().text()).map_err(|e| said(file, e))?;
        fs::write(&beside, signature.text()).map_err(|e| said(Path::new(&beside), e))?;
    }
    let signer = Signer::of(&signature, Some(Ok(())));
    output.line(&signer);
    if minimum_version > 1 {
        let name = &bundle.manifest().name;
        output.line(format_args!("hosts that have it in force will run no '{name}' of yours below {minimum_version}"));
    }
    output.result(&signer)
}

/// Signs a bundle where it lies.
pub(crate) fn sign_bundle(
    bundle: &Bundle,
    secret: &SecretKey,
    version: u64,
    minimum_version: u64,
) -> Result<Signature> {
    let (manifest, name) = (bundle.digest(), bundle.manifest().name.clone());
    let statement = Statement { manifest, name, version, minimum_version };
    statement.check().map_err(BadInput::error)?;
    // The comment is signed, too; the time is not in it, for clocks are not to be relied on.
    let comment = format!("{} version {version}", statement.name);
    let signed = minisign::sign(None, secret, Cursor::new(statement.text()), Some(comment.as_str()), None);
    let signature = Signature::of(&statement, &signed.context("signing")?.into_string())?;
    // A damaged key would sign, too.
    let public = minisign::PublicKey::from_secret_key(secret).context("reading the key")?;
    PublicKey::read(&public.to_base64())?.verify(&signature, bundle.sealed())?;
    Store::at(bundle.dir()).lock()?.sign(&bundle.digest(), &signature)?;
    Ok(signature)
}

/// Who signed a bundle, and whether that holds as far as `keys` tell.
pub(crate) fn signers(bundle: &Bundle, keys: &[PublicKey]) -> Vec<Signer> {
    let signer = |signature: &Signature| {
        let with_id = keys.iter().filter(|key| key.id() == signature.key());
        // Ids prove nothing: two keys may have the same one.
        let verified = with_id.map(|key| key.verify(signature, bundle.sealed())).reduce(Result::or);
        Signer::of(signature, verified.map(|verified| verified.map_err(|e| e.to_string())))
    };
    bundle.signatures().iter().map(signer).collect()
}

/// Reads public keys: each is one, or a file with one.
pub(crate) fn public(given: &[String]) -> Result<Vec<PublicKey>> {
    let read = |given: &String| {
        PublicKey::read(given).or_else(|_| {
            let said = |e: &dyn fmt::Display| BadInput::error(format!("{given}: {e}"));
            let text = read_file(Path::new(given)).map_err(|e| said(&e))?;
            PublicKey::read(&text).map_err(|e| said(&e))
        })
    };
    given.iter().map(read).collect()
}

fn secret(path: &Path, password_file: Option<&Path>) -> Result<SecretKey> {
    let text = read_file(path).map_err(|e| BadInput::error(format!("{}: {e}", path.display())))?;
    let is_encrypted = text.lines().nth(1).is_some_and(|line| line.starts_with(ENCRYPTED));
    let key = SecretKeyBox::from(text);
    let read = if is_encrypted {
        let password = password(password_file, &format!("Password of {}: ", path.display()))?;
        key.into_secret_key(Some(password))
    } else {
        key.into_unencrypted_secret_key()
    };
    read.map_err(|e| BadInput::error(format!("{} gives no secret key: {e}", path.display())))
}

fn password(file: Option<&Path>, prompt: &str) -> Result<String> {
    let password = match file {
        Some(file) => {
            let text = read_file(file).map_err(|e| BadInput::error(format!("{}: {e}", file.display())))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        None => ask(prompt)?,
    };
    if password.is_empty() {
        return Err(BadInput::error("an empty password protects nothing; --no-password says that none is wanted"));
    }
    Ok(password)
}

/// Asks the terminal, even where stdout is a program's.
fn ask(prompt: &str) -> Result<String> {
    rpassword::prompt_password(prompt)
        .map_err(|e| BadInput::error(format!("there is no terminal to ask for a password ({e}); give --password-file")))
}

fn read_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "it is too large for a key or a password"));
    }
    Ok(text)
}

/// Writes a file that must not be there yet, and that from its first moment on only those may read who may.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(|e| BadInput::error(format!("{}: {e}", path.display())))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(|| path.display().to_string())
}

impl Signer {
    fn of(signature: &Signature, verified: Option<Result<(), String>>) -> Self {
        let statement = signature.statement();
        Self {
            key_id: signature.key().to_string(),
            version: statement.version,
            minimum_version: statement.minimum_version,
            holds: verified.as_ref().map(Result::is_ok),
            why: verified.and_then(Result::err),
        }
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key_id, version, minimum_version, holds, why } = self;
        write!(f, "signed    by key {key_id}: version {version}, nothing below {minimum_version} beside it")?;
        match (holds, why) {
            (Some(true), _) => f.write_str("; that holds"),
            (_, Some(why)) => write!(f, "; NO: {why}"),
            _ => f.write_str("; not looked at without its --key"),
        }
    }
}
