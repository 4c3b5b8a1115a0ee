//! One instance per user: the first holds a lock and listens on a socket; a second one hands over what it was asked to
//! open, and ends. Two hosts would write the same saved texts.
//!
//! A lock and a socket of our own rather than D-Bus: desktops without a session bus have windows, too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a second instance asks the first to do: to come to the front, and to open a model if one was named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Folder or GGUF file.
    pub open: Option<String>,
}

/// Longest message, in bytes: a path and its quotes.
const LONGEST: u64 = 64 << 10;
/// How long a second instance waits for the first to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why the place could not be taken.
#[derive(Debug, Error)]
pub enum SeatError {
    /// The folder for lock and socket is not usable.
    #[error("{}: {source}; MODEL1 Explorer keeps its lock there", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody holds the lock but does not answer.
    #[error(
        "MODEL1 Explorer is running already, but does not answer ({source}). End it, or wait until it has ended, then \
         start again"
    )]
    Silent {
        /// Why not.
        source: io::Error,
    },
}

/// The outcome of [`take_seat`].
#[derive(Debug)]
pub enum Seat {
    /// We are the first.
    First(SeatHolder),
    /// Another one runs and took the message.
    Second,
}

/// Holds the place of the first instance until dropped.
#[derive(Debug)]
pub struct SeatHolder {
    _lock: File,
    socket: PathBuf,
}

impl Drop for SeatHolder {
    fn drop(&mut self) {
        // A socket left behind does no harm: the lock decides.
        let _ = fs::remove_file(&self.socket);
    }
}

/// Takes the place of the first instance in `folder` and calls `heard` for each message of a later one, on a thread of
/// its own; or hands `message` to the instance that has it.
///
/// # Errors
/// [`SeatError`].
#[cfg(unix)]
pub fn take_seat(
    folder: &Path,
    message: &Message,
    heard: impl Fn(Message) + Send + 'static,
) -> Result<Seat, SeatError> {
    use std::os::unix::fs::DirBuilderExt;
    use std::os::unix::net::UnixListener;

    let wrong = |path: &Path| {
        let path = path.to_path_buf();
        move |source| SeatError::Folder { path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(wrong(folder))?;
    let (lock_file, socket) = (folder.join("window.lock"), folder.join("window.sock"));
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_file)
        .map_err(wrong(&lock_file))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return hand_over(&socket, message),
        Err(TryLockError::Error(source)) => return Err(wrong(&lock_file)(source)),
    }
    // Whoever left a socket behind is gone: we have the lock.
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(wrong(&socket))?;
    std::thread::Builder::new()
        .name("instances".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(message) = hear(stream) {
                    heard(message);
                }
            }
        })
        .map_err(wrong(folder))?;
    Ok(Seat::First(SeatHolder { _lock: lock, socket }))
}

/// Reads one message and says that it arrived.
#[cfg(unix)]
fn hear(mut stream: std::os::unix::net::UnixStream) -> io::Result<Message> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LONGEST)).read_line(&mut line)?;
    let message = serde_json::from_str(&line)?;
    stream.write_all(b"ok\n")?;
    Ok(message)
}

#[cfg(unix)]
fn hand_over(socket: &Path, message: &Message) -> Result<Seat, SeatError> {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    let say = || -> io::Result<()> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = [0; 3];
        stream.read_exact(&mut answer)
    };
    // The first one may have the lock and not yet the socket.
    let until = Instant::now() + PATIENCE;
    loop {
        match say() {
            Ok(()) => return Ok(Seat::Second),
            Err(source) if Instant::now() >= until => return Err(SeatError::Silent { source }),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Elsewhere the lock alone is kept, and a second instance is refused.
#[cfg(not(unix))]
pub fn take_seat(
    folder: &Path,
    _message: &Message,
    _heard: impl Fn(Message) + Send + 'static,
) -> Result<Seat, SeatError> {
    let path = folder.join("window.lock");
    let open = || {
        fs::create_dir_all(folder)?;
        OpenOptions::new().create(true).truncate(false).write(true).open(&path)
    };
    let lock = open().map_err(|source| SeatError::Folder {
        path: path.clone(),
        source,
    })?;
    match lock.try_lock() {
        Ok(()) => Ok(Seat::First(SeatHolder {
            _lock: lock,
            socket: folder.join("window.sock"),
        })),
        Err(TryLockError::WouldBlock) => Err(SeatError::Silent {
            source: io::ErrorKind::WouldBlock.into(),
        }),
        Err(TryLockError::Error(source)) => Err(SeatError::Folder { path, source }),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_second_instance_hands_its_message_to_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let (tell, told) = mpsc::channel();
        let first = take_seat(folder.path(), &Message::default(), move |m| tell.send(m).unwrap()).unwrap();
        assert!(matches!(first, Seat::First(_)));
        for open in [None, Some("a folder/ünï \"quoted\"\nmodel.gguf".to_string())] {
            let message = Message { open };
            let second = take_seat(folder.path(), &message, |_| ()).unwrap();
            assert!(matches!(second, Seat::Second));
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), message);
        }
    }

    #[test]
    fn the_place_is_free_again_once_the_first_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        drop(take_seat(folder.path(), &Message::default(), |_| ()).unwrap());
        // A socket that a killed instance left behind is no obstacle either.
        fs::write(folder.path().join("window.sock"), "").unwrap();
        assert!(matches!(
            take_seat(folder.path(), &Message::default(), |_| ()).unwrap(),
            Seat::First(_)
        ));
    }

    #[test]
    fn nonsense_on_the_socket_is_not_a_message() {
        let folder = tempfile::tempdir().unwrap();
        let (tell, told) = mpsc::channel();
        let _first = take_seat(folder.path(), &Message::default(), move |m| tell.send(m).unwrap()).unwrap();
        let socket = folder.path().join("window.sock");
        for bytes in [&b"nonsense\n"[..], b"\xff\xfe\n", b"", &vec![b'a'; 100_000]] {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
            // The other side may hang up in the middle of too long a message.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.is_empty());
        }
        // It still listens.
        take_seat(folder.path(), &Message { open: Some("x".into()) }, |_| ()).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap().open.as_deref(), Some("x"));
    }

    #[test]
    fn a_holder_that_never_answers_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let lock = File::create(folder.path().join("window.lock")).unwrap();
        lock.lock().unwrap();
        let error = take_seat(folder.path(), &Message::default(), |_| ()).unwrap_err();
        assert!(error.to_string().contains("running already"), "{error}");
    }
}
