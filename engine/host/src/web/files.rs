//! Files of the page.

use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Shown where the interface has not been built.
const MISSING: &str = include_str!("missing.html");

/// Where the page's files are.
pub(super) struct Files {
    folder: Option<PathBuf>,
    /// gzip copies, `NAME.gz`.
    packed: Option<PathBuf>,
}

/// What the page may do: run its own code, WebAssembly included, and talk to this host. Nothing inline, nothing from
/// elsewhere.
pub(super) fn policy(host: &str) -> String {
    // `'self'` does not cover WebSockets in older WebKit. The name was checked; only its plain characters are taken.
    let plain = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
    let socket = if plain {
        format!(" ws://{host} wss://{host}")
    } else {
        String::new()
    };
    format!(
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; \
         font-src 'self'; connect-src 'self'{socket}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         object-src 'none'"
    )
}

fn mime(path: &Path) -> &'static str {
    match path.extension().and_then(|e| e.to_str()).unwrap_or("") {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "wasm" => "application/wasm",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "webp" => "image/webp",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// The file name of a request path: plain components only, nothing hidden. Percent signs are not decoded: no file of
/// the page needs them.
fn relative(path: &str) -> Option<PathBuf> {
    let path = path.strip_prefix('/')?;
    let path = if path.is_empty() { "index.html" } else { path };
    let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if !path.chars().all(good) {
        return None;
    }
    let path = Path::new(path);
    let plain = |c: Component<'_>| matches!(c, Component::Normal(n) if !n.to_string_lossy().starts_with('.'));
    path.components().all(plain).then(|| path.to_path_buf())
}

impl Files {
    pub fn new(folder: Option<PathBuf>) -> Self {
        let packed = folder.as_ref().and_then(|f| {
            let mut name = f.file_name()?.to_os_string();
            name.push("-gz");
            Some(f.with_file_name(name))
        });
        Self { folder, packed }
    }

    /// Answers a request for a file.
    pub fn answer(&self, path: &str, headers: &HeaderMap) -> Response {
        let Some(relative) = relative(path) else {
            return not_found();
        };
        let Some(folder) = self.folder.as_deref().filter(|f| f.join("index.html").is_file()) else {
            return if path == "/" { missing() } else { not_found() };
        };
        let Some(file) = inside(folder, &folder.join(&relative)) else {
            return not_found();
        };
        let Ok(meta) = std::fs::metadata(&file) else {
            return not_found();
        };
        let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let tag = format!("\"{:x}-{:x}\"", meta.len(), changed.map_or(0, |d| d.as_nanos()));
        let cached = headers
            .get(header::IF_NONE_MATCH)
            .is_some_and(|h| h.as_bytes() == tag.as_bytes());
        let mut response = if cached {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            match self.body(&relative, &file, headers) {
                Ok(response) => response,
                Err(e) => {
                    tracing::warn!("{}: {e}", file.display());
                    return not_found();
                }
            }
        };
        let out = response.headers_mut();
        out.insert(header::CONTENT_TYPE, HeaderValue::from_static(mime(&relative)));
        // Asked again each time, because a rebuilt interface has the same names.
        out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        out.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            out.insert(header::ETAG, tag);
        }
        response
    }

    fn body(&self, relative: &Path, file: &Path, headers: &HeaderMap) -> std::io::Result<Response> {
        let takes_gzip = headers
            .get(header::ACCEPT_ENCODING)
            .and_then(|h| h.to_str().ok())
            .is_some_and(|h| h.split(',').any(|e| e.trim().split(';').next() == Some("gzip")));
        if takes_gzip && let Some(packed) = self.packed(relative, file) {
            let mut response = Body::from(std::fs::read(packed)?).into_response();
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            return Ok(response);
        }
        Ok(Body::from(std::fs::read(file)?).into_response())
    }

    /// The gzip copy of a file, if it is not older than the file.
    fn packed(&self, relative: &Path, file: &Path) -> Option<PathBuf> {
        let gz = |p: PathBuf| {
            let mut name = p.into_os_string();
            name.push(".gz");
            PathBuf::from(name)
        };
        let beside = gz(file.to_path_buf());
        let apart = self.packed.as_ref().map(|f| gz(f.join(relative)));
        let modified = |p: &Path| std::fs::metadata(p).and_then(|m| m.modified()).ok();
        let own = modified(file)?;
        // The copies are written right after the files; a second covers coarse clocks.
        let second = std::time::Duration::from_secs(1);
        [Some(beside), apart]
            .into_iter()
            .flatten()
            .find(|p| modified(p).is_some_and(|m| m + second >= own))
    }
}

/// The file, if it really lies in the folder (links may lead elsewhere).
fn inside(folder: &Path, file: &Path) -> Option<PathBuf> {
    let (folder, file) = (folder.canonicalize().ok()?, file.canonicalize().ok()?);
    (file.starts_with(folder) && file.is_file()).then_some(file)
}

fn not_found() -> Response {
    let text = "There is no such file.";
    (
        StatusCode::NOT_FOUND,
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        text,
    )
        .into_response()
}

fn missing() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'",
        ),
    ];
    (StatusCode::OK, headers, MISSING).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_folder() {
        assert_eq!(relative("/"), Some("index.html".into()));
        assert_eq!(relative("/a/b.js"), Some("a/b.js".into()));
        for bad in [
            "",
            "x",
            "/../x",
            "/a/../../x",
            "/.git/config",
            "/a/.b",
            "//etc/passwd",
            "/%2e%2e/x",
            "/a\\b",
            "/a\0",
        ] {
            assert_eq!(relative(bad), None, "{bad:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let ui = dir.path().join("ui");
        std::fs::create_dir(&ui).unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::fs::write(ui.join("index.html"), "i").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), ui.join("out.txt")).unwrap();
        let files = Files::new(Some(ui));
        let none = HeaderMap::new();
        assert_eq!(files.answer("/index.html", &none).status(), StatusCode::OK);
        assert_eq!(files.answer("/out.txt", &none).status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn gzip_copies_are_used_and_stale_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (ui, gz) = (dir.path().join("dist"), dir.path().join("dist-gz"));
        std::fs::create_dir(&ui).unwrap();
        std::fs::create_dir(&gz).unwrap();
        std::fs::write(ui.join("index.html"), "i").unwrap();
        std::fs::write(gz.join("index.html.gz"), "packed").unwrap();
        let files = Files::new(Some(ui.clone()));
        let mut headers = HeaderMap::new();
        let encoding = |h: &HeaderMap| files.answer("/", h).headers().get(header::CONTENT_ENCODING).cloned();
        assert_eq!(encoding(&headers), None);
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("br, gzip;q=0.5"));
        assert_eq!(encoding(&headers).unwrap(), "gzip");
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        std::fs::File::options()
            .write(true)
            .open(gz.join("index.html.gz"))
            .unwrap()
            .set_modified(old)
            .unwrap();
        assert_eq!(encoding(&headers), None);
        let tag = files.answer("/", &headers).headers()[header::ETAG].clone();
        headers.insert(header::IF_NONE_MATCH, tag);
        assert_eq!(files.answer("/", &headers).status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn the_policy_names_no_strange_host() {
        assert!(policy("127.0.0.1:80").contains("connect-src 'self' ws://127.0.0.1:80 wss"));
        assert!(!policy("a; script-src *").contains('*'));
        assert!(policy("x").contains("script-src 'self' 'wasm-unsafe-eval';"));
    }
}
