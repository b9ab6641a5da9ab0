//! Certificates for the tests of TLS: two authorities, and what they have signed.

use super::Config;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        // Not the name that certificates have by default: issuer and subject would look like one.
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this host, and its key.
    pub(crate) fn issue(&self, host: &str) -> (String, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![host.to_owned()]).expect("a host");
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key)
    }
}

/// Files of certificates, removed at the end.
pub(crate) struct Files {
    dir: tempfile::TempDir,
    ours: Authority,
}

impl Files {
    /// `ours.crt` and `others.crt` of two authorities; by the first `server.*` for 127.0.0.1 and `client.*`,
    /// by the second `stranger.*`. Keys are in PEM, and as `*.pk8` in the DER that JDBC wants.
    pub(crate) fn new() -> Files {
        let files = Files { dir: tempfile::tempdir().expect("a directory"), ours: Authority::new() };
        let others = Authority::new();
        files.write("ours.crt", &files.ours.pem);
        files.write("others.crt", &others.pem);
        for (name, (cert, key)) in [
            ("server", files.ours.issue("127.0.0.1")),
            ("client", files.ours.issue("app")),
            ("stranger", others.issue("app")),
        ] {
            files.write(&format!("{name}.crt"), &cert);
            files.write(&format!("{name}.key"), key.serialize_pem());
            files.write(&format!("{name}.pk8"), key.serialize_der());
        }
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).expect("a file");
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(0o600)).expect("mode 0600");
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("a file")
    }

    /// A proxy's side towards clients.
    pub(crate) fn towards_clients(&self, config: Config, mode: &str) -> Config {
        let line = |key: &str, file: &str| format!("{key}_file = \"{}\"", self.path(file).display());
        config
            .with("tls.client", &format!("mode = \"{mode}\""))
            .with("tls.client", &line("cert", "server.crt"))
            .with("tls.client", &line("key", "server.key"))
            .with("tls.client", &line("ca", "ours.crt"))
    }
}
