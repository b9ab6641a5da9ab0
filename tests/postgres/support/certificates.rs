//! Certificates for tests: two authorities that know nothing of each other, and what they have signed.

use super::Config;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        // Not the name that certificates have by default: issuer and subject would look like one.
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this host, and its key.
    fn issue(&self, host: &str) -> (String, KeyPair) {
        self.sign(CertificateParams::new(vec![host.to_owned()]).expect("a host"))
    }

    /// A certificate with this common name, or with none, and its key.
    fn issue_named(&self, name: Option<&str>) -> (String, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "clients");
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> (String, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key)
    }
}

/// Files of certificates, removed at the end.
pub(crate) struct Files {
    dir: tempfile::TempDir,
    ours: Authority,
}

impl Files {
    /// `ours.crt` and `others.crt` of two authorities; by the first `server.*` for 127.0.0.1, `client.*`,
    /// and `app.*`, `plain_user.*` and `nameless.*`, which have those common names; by the second `stranger.*`,
    /// which is called app as well. Keys are in PEM, and as `*.pk8` in the DER that JDBC wants.
    pub(crate) fn new() -> Files {
        let files = Files { dir: tempfile::tempdir().expect("a directory"), ours: Authority::new() };
        let others = Authority::new();
        files.write("ours.crt", &files.ours.pem);
        files.write("others.crt", &others.pem);
        for (name, (cert, key)) in [
            ("server", files.ours.issue("127.0.0.1")),
            ("client", files.ours.issue("app")),
            ("app", files.ours.issue_named(Some("app"))),
            ("plain_user", files.ours.issue_named(Some("plain_user"))),
            ("nameless", files.ours.issue_named(None)),
            ("stranger", others.issue_named(Some("app"))),
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
