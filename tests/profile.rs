//! What `scripts/rustc-profiled` hands on to the compiler: the profile to optimised builds, and nothing else changed.

use std::path::Path;
use std::process::Command;

/// The command line that the compiler would get; `echo` stands in for it.
fn handed_on(arguments: &[&str], profile: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/rustc-profiled");
    // As Cargo calls it: with a working directory of the package that is built.
    let output = Command::new(script)
        .arg("echo")
        .args(arguments)
        .env("BURSAR_PROFILE", profile)
        .current_dir(std::env::temp_dir())
        .output()
        .expect("scripts/rustc-profiled runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
}

#[test]
fn optimised_builds_get_the_profile() {
    let arguments = ["--crate-name", "x", "-C", "opt-level=3", "-C", "lto"];
    let line = handed_on(&arguments, "on");
    let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bursar.profdata");
    let profile = profile.canonicalize().expect("the profile is there");
    assert_eq!(
        line,
        format!(
            "{} -Cprofile-use={} -Cllvm-args=-no-pgo-warn-mismatch",
            arguments.join(" "),
            profile.display()
        )
    );
}

#[test]
fn other_builds_are_left_alone() {
    for (arguments, profile) in [
        (&["--crate-name", "x", "-C", "opt-level=3"][..], "off"),
        (&["--crate-name", "x", "-C", "debuginfo=line-tables-only"], "on"),
        (&["-vV"], "on"),
        // What is built to make a profile.
        (&["--crate-name", "x", "-C", "opt-level=3", "-Cprofile-generate=/tmp/x"], "on"),
    ] {
        assert_eq!(handed_on(arguments, profile), arguments.join(" "));
    }
}
