//! How many bytes the other end of a connection has not read yet: the way to know, without a sleep,
//! that two writes were two reads over there.
//!
//! Asks the kernel for the one socket (sock_diag(7)); where that is not to be had, reads the list of
//! all (`/proc/net/tcp`), which takes a hundred times as long.

use socket2::{Domain, Protocol, Socket, Type};
use std::io::Read;
use std::net::Ipv4Addr;

const NETLINK: i32 = 16;
const SOCK_DIAG: i32 = 4;
/// nlmsghdr, then inet_diag_msg: family to retrans, the socket's id, expires, **rqueue**.
const RQUEUE: usize = 16 + 4 + 48 + 4;

/// The connection between two ports of 127.0.0.1, seen from one of its ends.
pub(crate) struct Unread {
    local: u16,
    remote: u16,
    kernel: Option<Socket>,
}

impl Unread {
    /// Of the end whose own port is `local`.
    pub(crate) fn of(local: u16, remote: u16) -> Unread {
        let kernel = Socket::new(Domain::from(NETLINK), Type::DGRAM, Some(Protocol::from(SOCK_DIAG))).ok();
        Unread { local, remote, kernel }
    }

    /// Bytes that wait there; 0 if that end is closed.
    pub(crate) fn bytes(&mut self) -> u64 {
        match self.ask() {
            Some(bytes) => bytes,
            None => {
                self.kernel = None;
                self.search()
            }
        }
    }

    /// `None` if the kernel does not answer such questions.
    fn ask(&self) -> Option<u64> {
        let socket = self.kernel.as_ref()?;
        let mut request = Vec::with_capacity(72);
        request.extend(72u32.to_ne_bytes());
        request.extend(20u16.to_ne_bytes()); // SOCK_DIAG_BY_FAMILY
        request.extend(1u16.to_ne_bytes()); // NLM_F_REQUEST
        request.extend([0; 8]); // sequence, sender
        request.extend([2, 6, 0, 0]); // AF_INET, IPPROTO_TCP
        request.extend(u32::MAX.to_ne_bytes()); // in any state
        request.extend(self.local.to_be_bytes());
        request.extend(self.remote.to_be_bytes());
        for _ in 0..2 {
            request.extend(Ipv4Addr::LOCALHOST.octets());
            request.extend([0; 12]);
        }
        request.extend([0; 4]); // any interface
        request.extend([0xff; 8]); // no cookie
        socket.send(&request).ok()?;
        let mut reply = [0; 512];
        let length = (&*socket).read(&mut reply).ok()?;
        let reply = &reply[..length];
        match u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?) {
            20 => Some(u64::from(u32::from_ne_bytes(reply.get(RQUEUE..RQUEUE + 4)?.try_into().ok()?))),
            // NLMSG_ERROR; ENOENT: there is no such socket.
            2 if i32::from_ne_bytes(reply.get(16..20)?.try_into().ok()?) == -2 => Some(0),
            _ => None,
        }
    }

    fn search(&self) -> u64 {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
        let (local, remote) = (format!(":{:04X}", self.local), format!(":{:04X}", self.remote));
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            if let [_, here, there, _, queues, ..] = fields[..]
                && here.ends_with(&local)
                && there.ends_with(&remote)
            {
                let waiting = queues.split_once(':').map_or("0", |(_, waiting)| waiting);
                return u64::from_str_radix(waiting, 16).expect("a hexadecimal number");
            }
        }
        0
    }
}
