//! The program by its command line: what it refuses to start with, its other subcommands, and the exit
//! codes that scripts and containers go by (interface.md, "Command line").

use crate::support::watch::{bursar, printed};
use crate::support::{Cluster, Config, Db, Proxy, eventually};
use std::net::TcpStream;
use std::time::Duration;

#[test]
fn a_bad_configuration_is_refused_with_file_line_and_key() {
    let file = Cluster::shared().subdir("bad-config").join("config.toml");
    std::fs::write(&file, "[pool]\nmode = \"transaction\"\nsizze = 3\n\n[drain]\ndeadline = 5\n")
        .expect("written");
    let file = file.to_str().expect("a path of plain letters");
    for arguments in [vec!["--config", file], vec!["check", "--config", file]] {
        let refused = bursar(&arguments);
        let said = printed(&refused);
        assert_eq!(refused.status.code(), Some(64), "{said}");
        for piece in ["config.toml:3", "sizze", "size", "config.toml:6", "deadline"] {
            assert!(said.contains(piece), "{piece} in: {said}");
        }
    }
}

#[test]
fn check_and_health_say_it_with_their_exit_code() {
    let db = Db::new();
    // With a known user as with the client's own: check logs in to the server either way.
    for config in [Config::one_backend(), Config::one_backend().with("user.app", "password = \"unused\"")] {
        let proxy = Proxy::start(&db, config);
        let file = proxy.config_file().display().to_string();
        let good = bursar(&["check", "--config", &file]);
        assert_eq!(good.status.code(), Some(0), "{}", printed(&good));
        assert!(printed(&good).ends_with(": good; every server answers\n"), "{}", printed(&good));
        let health = bursar(&["health", "--config", &file]);
        assert_eq!(health.status.code(), Some(0), "{}", printed(&health));

        let bad = std::fs::read_to_string(&file).expect("the file").replace("size = 1", "size = 0");
        let bad_file = format!("{file}.bad");
        std::fs::write(&bad_file, bad).expect("a bad file");
        let bad = bursar(&["check", "--config", &bad_file]);
        assert_eq!(bad.status.code(), Some(64), "{}", printed(&bad));
        assert!(printed(&bad).contains("pool.size"), "{}", printed(&bad));
        let started = bursar(&["--config", &bad_file]);
        assert_eq!(started.status.code(), Some(64), "{}", printed(&started));

        let address = proxy.admin_addr();
        proxy.stop();
        eventually("nobody listens", Duration::from_secs(5), || TcpStream::connect(address).err());
        assert_eq!(bursar(&["health", "--config", &file]).status.code(), Some(1));
    }
}

#[test]
fn a_port_in_use_is_a_failure() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::one_backend());
    let second = bursar(&["--config", &proxy.config_file().display().to_string()]);
    assert_eq!(second.status.code(), Some(1), "{}", printed(&second));
    assert!(TcpStream::connect(proxy.addr()).is_ok(), "the first one goes on");
    proxy.stop();
}

#[test]
fn the_bench_finds_every_session_served_and_nothing_left() {
    let db = Db::new();
    let proxy = Proxy::start(&db, Config::of_size(20).with("pool", "max_wait = \"30s\""));
    let url = format!("postgres://app@{}/{}", proxy.addr(), db.name());
    let run = bursar(&["bench", "--sessions", "100", "--url", &url]);
    let text = printed(&run);
    assert_eq!(run.status.code(), Some(0), "{text}");
    assert!(text.contains("100.00 %"), "{text}");
    assert!(text.contains("left behind: leases 0, open transactions 0\n"), "{text}");
    proxy.stop();
}
