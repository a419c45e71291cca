//! `bcachectl` as a user runs it: arguments in, JSON out.

use crate::binary;
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The command, ready for more arguments. Standard input is empty and no terminal.
///
/// # Errors
/// When it has not been built.
pub fn bcachectl() -> anyhow::Result<Command> {
    let mut command = Command::new(binary("bcachectl")?);
    command.stdin(Stdio::null());
    Ok(command)
}

/// Runs `bcachectl` with these arguments.
///
/// # Errors
/// When it cannot be started; how it ended is in the result.
pub fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<Output> {
    bcachectl()?.args(arguments).output().context("run bcachectl")
}

/// Runs `bcachectl make --json` and gives its devices, in the order in which they were named.
///
/// # Errors
/// When it does not succeed.
pub fn make(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<Vec<Value>> {
    let output = bcachectl()?.args(["make", "--json"]).args(arguments).output()?;
    devices(&output)
}

/// Runs `bcachectl show --json` on one device.
///
/// # Errors
/// When it does not succeed.
pub fn show(device: &Path) -> anyhow::Result<Value> {
    let output = bcachectl()?.args(["show", "--json"]).arg(device).output()?;
    devices(&output)?.pop().context("show told of no device")
}

fn devices(output: &Output) -> anyhow::Result<Vec<Value>> {
    ensure!(
        output.status.success(),
        "bcachectl ended with {}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        String::from_utf8_lossy(&output.stdout).trim()
    );
    let document: Value =
        serde_json::from_slice(&output.stdout).context("the output is no JSON document")?;
    match document.get("devices") {
        Some(Value::Array(devices)) => Ok(devices.clone()),
        _ => bail!("no devices in {document}"),
    }
}

/// A number in a device's JSON, by its JSON pointer.
///
/// # Errors
/// When it is not there or not a number.
pub fn number(device: &Value, pointer: &str) -> anyhow::Result<u64> {
    let value = device.pointer(pointer).and_then(Value::as_u64);
    value.with_context(|| format!("no number at {pointer} in {device}"))
}

/// A string in a device's JSON, by its JSON pointer.
///
/// # Errors
/// When it is not there or not a string.
pub fn text<'a>(device: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    let value = device.pointer(pointer).and_then(Value::as_str);
    value.with_context(|| format!("no string at {pointer} in {device}"))
}

/// A truth value in a device's JSON, by its JSON pointer.
///
/// # Errors
/// When it is not there or neither true nor false.
pub fn truth(device: &Value, pointer: &str) -> anyhow::Result<bool> {
    let value = device.pointer(pointer).and_then(Value::as_bool);
    value.with_context(|| format!("no truth value at {pointer} in {device}"))
}

/// A shell that runs `script` with mounts of its own: what it mounts on /sys and /dev nobody else sees.
/// Arguments that are added are `$0`, `$1` and so on.
pub fn with_own_mounts(script: &str) -> Command {
    // In a chroot whose root is no mount point, only those two can be made private.
    const PRIVATE: &str = "mount --make-rprivate / 2>/dev/null || \
                           { mount --make-rprivate /sys; mount --make-rprivate /dev; }; ";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "unchanged", "sh", "-ec"]);
    command.arg(format!("{PRIVATE}{script}"));
    command
}
