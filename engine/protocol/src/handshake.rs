//! The handshake as both ends judge it: builds whose messages could differ never talk, and say so in a sentence.
//!
//! The first frame of either side begins with its numbers, so that builds of any version can read them in each
//! other's frames, whatever follows.

use serde::{Deserialize, Serialize};

use crate::{ClientFrame, HostFrame, MAX_FRAME, PROTOCOL_VERSION, ProtocolError, SCHEMA_HASH, Welcome, decode};

/// A host on another machine that would let us in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteHost {
    /// `HOST:PORT`.
    pub authority: String,
    /// Token of its link.
    pub token: String,
    /// Version of its program.
    pub version: String,
}

/// Why an interface and a host cannot talk; `None` if they can. Both are (protocol version, schema hash), `client` is
/// what the interface calls itself ([`crate::Hello::client`]).
pub fn mismatch(client: &str, interface: (u32, u64), host: (u32, u64)) -> Option<String> {
    if interface == host {
        return None;
    }
    let remedy = match client {
        "browser" => "Reload the page; if it stays so, build the interface anew and restart the host (./run)",
        _ => "Update the older of the two, or start both from one build (./run)",
    };
    Some(format!(
        "This interface and the host are of different builds (interface: protocol {}, {:016x}; host: protocol {}, \
         {:016x}). {remedy}.",
        interface.0, interface.1, host.0, host.1
    ))
}

/// The first frame of a client, at the host.
///
/// # Errors
/// The sentence to refuse it with, if it cannot be read: it names the versions where the frame begins with some.
pub fn decode_first(bytes: &[u8]) -> Result<ClientFrame, String> {
    let malformed = match decode::<ClientFrame>(bytes) {
        Ok(frame) => return Ok(frame),
        Err(e) => e,
    };
    // The frame's id, the number of the variant (0 = Hello), version, schema.
    let interface = match head::<4>(bytes, &malformed) {
        Some([_, 0, version, schema]) => u32::try_from(version).ok().map(|v| (v, schema)),
        _ => None,
    };
    let sentence = interface.and_then(|i| mismatch("", i, (PROTOCOL_VERSION, SCHEMA_HASH)));
    Err(sentence.unwrap_or_else(|| {
        format!("The first frame is not a handshake: {malformed}. Accepted is a client of MODEL1 Explorer.")
    }))
}

/// The first frame of a host, at the client: only a host of the same build is accepted.
///
/// # Errors
/// The sentence to show: a mismatch, the host's own refusal, or a frame that is no welcome.
pub fn decode_welcome(client: &str, bytes: &[u8]) -> Result<Welcome, String> {
    let own = (PROTOCOL_VERSION, SCHEMA_HASH);
    let malformed = match decode::<HostFrame>(bytes) {
        Ok(HostFrame::Welcome(welcome)) => {
            return match *welcome {
                Welcome::Refused(sentence) => Err(sentence),
                Welcome::Accepted { ref host, .. } => match mismatch(client, own, (host.version, host.schema)) {
                    Some(sentence) => Err(sentence),
                    None => Ok(*welcome),
                },
            };
        }
        Ok(_) => return Err("The host did not begin with a welcome: it is no host of MODEL1 Explorer.".into()),
        Err(e) => e,
    };
    // Welcome is variant 0 of the frames, Accepted variant 0 of the welcomes; version, schema.
    let host = match head::<4>(bytes, &malformed) {
        Some([0, 0, version, schema]) => u32::try_from(version).ok().map(|v| (v, schema)),
        _ => None,
    };
    let sentence = host.and_then(|h| mismatch(client, own, h));
    Err(sentence.unwrap_or_else(|| format!("The host's welcome cannot be read: {malformed}.")))
}

/// The first `N` varints of a frame, as postcard writes them.
fn head<const N: usize>(bytes: &[u8], malformed: &ProtocolError) -> Option<[u64; N]> {
    if bytes.len() > MAX_FRAME || matches!(malformed, ProtocolError::TooLarge(_)) {
        return None;
    }
    let mut rest = bytes;
    let mut next = || -> Option<u64> {
        let mut value = 0u64;
        for i in 0..10 {
            let (&byte, tail) = rest.split_first()?;
            rest = tail;
            value |= u64::from(byte & 0x7f).checked_shl(7 * i)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    };
    let mut out = [0; N];
    for value in &mut out {
        *value = next()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClientBody, Hello, HostInfo, Settings, encode};

    fn hello(version: u32, schema: u64) -> Vec<u8> {
        let hello = Hello {
            version,
            schema,
            ..Hello::new("browser")
        };
        let body = ClientBody::Hello(hello);
        encode(&ClientFrame { id: 1 << 40, body }).unwrap()
    }

    fn welcome(version: u32, schema: u64) -> Vec<u8> {
        let host = HostInfo {
            version,
            schema,
            ..HostInfo::new("0.1.0", 5, true, "Linux")
        };
        let settings = Settings::default();
        let welcome = Welcome::Accepted {
            host,
            driver: true,
            settings,
        };
        encode(&HostFrame::Welcome(Box::new(welcome))).unwrap()
    }

    #[test]
    fn the_same_build_is_let_in_at_both_ends() {
        assert!(decode_first(&hello(PROTOCOL_VERSION, SCHEMA_HASH)).is_ok());
        let accepted = decode_welcome("browser", &welcome(PROTOCOL_VERSION, SCHEMA_HASH)).unwrap();
        assert!(matches!(accepted, Welcome::Accepted { driver: true, .. }));
    }

    #[test]
    fn a_client_refuses_a_host_of_another_build_even_one_it_cannot_read() {
        for (version, schema) in [(300, SCHEMA_HASH), (PROTOCOL_VERSION, u64::MAX)] {
            let whole = welcome(version, schema);
            let mut longer = whole.clone();
            longer.push(7);
            for bytes in [&whole[..], &whole[..whole.len() - 4], &longer] {
                let e = decode_welcome("browser", bytes).unwrap_err();
                assert!(
                    e.contains("different builds")
                        && e.contains(&format!("host: protocol {version}, {schema:016x}"))
                        && e.contains("Reload the page"),
                    "{e}"
                );
            }
        }
        // The host's own words come through; other things are no welcome.
        let refused = encode(&HostFrame::Welcome(Box::new(Welcome::Refused("full".into())))).unwrap();
        assert_eq!(decode_welcome("window", &refused).unwrap_err(), "full");
        let update = encode(&HostFrame::Update(Box::default())).unwrap();
        assert!(decode_welcome("window", &update).unwrap_err().contains("welcome"));
        for bytes in [&[][..], &[0x80; 40], b"HTTP/1.1 400"] {
            assert!(decode_welcome("window", bytes).unwrap_err().contains("cannot be read"));
        }
    }

    #[test]
    fn a_host_names_the_versions_of_a_client_it_cannot_read() {
        let mut bytes = hello(300, u64::MAX);
        bytes.push(1);
        let e = decode_first(&bytes).unwrap_err();
        assert!(
            e.contains("interface: protocol 300, ffffffffffffffff") && e.contains("Update"),
            "{e}"
        );
        for bytes in [&[][..], &[0x80; 40], b"GET / HTTP"] {
            let e = decode_first(bytes).unwrap_err();
            assert!(e.contains("not a handshake") && e.contains("Accepted"), "{e}");
        }
    }
}
