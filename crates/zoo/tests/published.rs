//! Published weights: which there are, where they lie, how a file is recognised, and how one is downloaded.

use std::fs;
use std::path::Path;
use tempfile::TempDir;
use zoo::weights::{Cache, DEFAULT_TAG, KnownBy, Reason, identify, published};
use zoo::{Preprocessing, WeightFile, facts, find, registry};

/// What the tests publish, and its SHA-256.
const CONTENT: &[u8] = b"The quick brown fox jumps over the lazy dog";
const SHA256: &str = "d7a8fbb307d7809469ca9abcb0082e4f8d5651e46d3cdb762d02d0bf37c9e592";

fn file(url: &str, sha256: &str) -> WeightFile {
    WeightFile {
        tag: "test".into(),
        dataset: "cifar10".into(),
        num_classes: 10,
        url: url.into(),
        sha256: sha256.into(),
        top1: 90.0,
        preprocessing: Preprocessing {
            mean: vec![0.5],
            std: vec![0.5],
            image_size: 32,
            resize: None,
            interpolation: None,
        },
    }
}

fn ignore(_: u64, _: Option<u64>) {}

/// The path below a folder, with slashes.
fn below(dir: &TempDir, path: &Path) -> String {
    path.strip_prefix(dir.path()).unwrap().display().to_string().replace('\\', "/")
}

#[test]
fn tags_are_found_in_any_case() {
    let resnet50 = find("resnet50").unwrap();
    assert_eq!(published(resnet50, DEFAULT_TAG).unwrap().tag, "imagenet1k_v1");
    assert_eq!(published(resnet50, "IMAGENET1K_V2").unwrap().top1, 80.858);
    let error = published(resnet50, "v3").unwrap_err().to_string();
    assert!(
        error.contains("resnet50 has no weights 'v3'; there are imagenet1k_v1, imagenet1k_v2"),
        "{error}"
    );
    let error = published(find("lenet5").unwrap(), DEFAULT_TAG).unwrap_err().to_string();
    assert!(error.contains("no published weights for lenet5"), "{error}");
}

/// Two files of one name in one folder would take each other's place.
#[test]
fn published_files_can_be_told_apart() {
    let cache = Cache::new("cache");
    let mut paths = Vec::new();
    for spec in registry() {
        for file in facts(spec.name).unwrap().weights {
            let sha256 = &file.sha256;
            let hex = sha256.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
            assert!(hex && [8, 64].contains(&sha256.len()), "{} {}: {sha256}", spec.name, file.tag);
            assert!(file.url.starts_with("https://"), "{}", file.url);
            let path = cache.path(&file).display().to_string();
            assert!(path.contains(&sha256[..8]), "{path}");
            paths.push((path, file.url));
        }
    }
    paths.sort();
    paths.dedup();
    assert!(paths.windows(2).all(|pair| pair[0].0 != pair[1].0), "{paths:?}");
    assert!(paths.len() > 10);
}

#[test]
fn a_file_is_known_by_its_content_then_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let known = [file("https://a/w-d7a8fbb3.pth", SHA256), file("https://a/v-01234567.pth", "01234567")];
    let identified = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        identify(&known, &path).unwrap().map(|(file, by)| (file.sha256.clone(), by))
    };
    assert_eq!(identified("renamed.bin", CONTENT), Some((SHA256.into(), KnownBy::Content)));
    // Content decides where the name says something else.
    assert_eq!(identified("v-01234567.pth", CONTENT), Some((SHA256.into(), KnownBy::Content)));
    assert_eq!(identified("akamaster_v-01234567.pth", b"other"), Some(("01234567".into(), KnownBy::Name)));
    assert_eq!(identified("weights.pth", b"other"), None);
    assert_eq!(identify(&[], &dir.path().join("missing")).unwrap(), None);
    assert!(identify(&known, &dir.path().join("missing")).is_err());
}

#[test]
fn files_are_cached_under_names_that_tell_them_apart() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let name = |url: &str| below(&dir, &cache.path(&file(url, SHA256)));
    // As torch.hub names them.
    assert_eq!(name("https://download.pytorch.org/models/resnet18-d7a8fbb3.pth"), "resnet18-d7a8fbb3.pth");
    assert_eq!(name("https://example.org/weights.th?raw=true"), "weights-d7a8fbb3.th");
    assert_eq!(
        name("https://huggingface.co/timm/resnest50d.in1k/resolve/main/model.safetensors"),
        "resnest50d.in1k-d7a8fbb3.safetensors"
    );
}

#[test]
fn a_cached_file_is_used_if_it_is_the_published_one() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    // A server that does not exist: nothing is asked of it.
    let file = file("http://127.0.0.1:1/w-d7a8fbb3.pth", "d7a8fbb3");
    fs::write(cache.path(&file), CONTENT).unwrap();
    assert_eq!(cache.fetch(&file, &mut ignore).unwrap(), cache.path(&file));
    fs::write(cache.path(&file), b"something else").unwrap();
    let error = cache.fetch(&file, &mut ignore).unwrap_err();
    assert!(matches!(error.reason, Reason::Stale { .. }), "{error}");
    assert!(error.to_string().contains("w-d7a8fbb3.pth: this is not the published file"), "{error}");
}

#[test]
fn files_of_the_hub_are_found_where_its_clients_keep_them() {
    let dir = tempfile::tempdir().unwrap();
    let (downloads, hub) = (dir.path().join("torch"), dir.path().join("hf"));
    let cache = Cache::new(&downloads).with_hub(&hub);
    let file = file("https://huggingface.co/timm/m.in1k/resolve/main/model.safetensors", SHA256);
    for (revision, content) in [("0abc", b"an older version".as_slice()), ("1def", CONTENT)] {
        let folder = hub.join("models--timm--m.in1k/snapshots").join(revision);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("model.safetensors"), content).unwrap();
    }
    let found = cache.fetch(&file, &mut ignore).unwrap();
    assert_eq!(below(&dir, &found), "hf/models--timm--m.in1k/snapshots/1def/model.safetensors");
}

#[cfg(not(feature = "hub"))]
#[test]
fn without_network_code_it_is_said_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let url = "http://127.0.0.1:1/w-d7a8fbb3.pth";
    let error = Cache::new(dir.path()).fetch(&file(url, SHA256), &mut ignore).unwrap_err();
    assert!(matches!(error.reason, Reason::NoHub { .. }), "{error}");
    let line = error.to_string();
    assert!(line.contains("--features hub") && line.contains(url) && !line.contains('\n'), "{line}");
}

/// Downloads from a server of this process, which misbehaves as told.
#[cfg(feature = "hub")]
mod download {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    /// What the server does with one connection.
    enum Answer {
        /// 200 with all of these bytes.
        All(&'static [u8]),
        /// 200 that announces all of them and breaks off after so many.
        Cut(&'static [u8], usize),
        /// 206 with the rest that was asked for.
        Rest(&'static [u8]),
        /// 206 with the bytes from here, whatever was asked for.
        Wrong(&'static [u8], usize),
        /// A status without a body.
        Status(&'static str),
    }
    use Answer::{All, Cut, Rest, Status, Wrong};

    /// Serves one connection after the other; gives the base URL and, for each, the range that was asked for.
    fn serve(answers: Vec<Answer>) -> (String, Receiver<Option<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (asked, ranges) = channel();
        thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                let start = range(&stream);
                asked.send(start).unwrap();
                respond(stream, &answer, start);
            }
        });
        (address, ranges)
    }

    /// Reads a request; the first byte of its range.
    fn range(stream: &TcpStream) -> Option<usize> {
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let range = headers
            .iter()
            .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        range.map(|range| range.trim_end_matches('-').parse().unwrap())
    }

    fn respond(mut stream: TcpStream, answer: &Answer, start: Option<usize>) {
        let mut send = |status: &str, headers: &str, body: &[u8], announced: usize| {
            let head = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {announced}\r\n{headers}\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body).unwrap();
        };
        match *answer {
            All(content) => send("200 OK", "", content, content.len()),
            Cut(content, n) => send("200 OK", "", &content[..n], content.len()),
            Rest(content) | Wrong(content, _) => {
                let from = if let Wrong(_, from) = *answer { from } else { start.unwrap() };
                let range =
                    format!("Content-Range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len());
                send("206 Partial Content", &range, &content[from..], content.len() - from);
            }
            Status(status) => send(status, "", b"", 0),
        }
    }

    struct Case {
        dir: TempDir,
        cache: Cache,
        file: WeightFile,
        ranges: Receiver<Option<usize>>,
    }

    impl Case {
        fn new(answers: Vec<Answer>, sha256: &str) -> Self {
            let (address, ranges) = serve(answers);
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::new(dir.path().join("hub/checkpoints"));
            Self { dir, cache, file: file(&format!("{address}/w-d7a8fbb3.pth"), sha256), ranges }
        }

        fn fetch(&self) -> zoo::weights::Result<PathBuf> {
            self.cache.fetch(&self.file, &mut ignore)
        }

        fn asked(&self) -> Vec<Option<usize>> {
            self.ranges.try_iter().collect()
        }

        fn files(&self) -> Vec<String> {
            let entries = fs::read_dir(self.dir.path().join("hub/checkpoints")).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    #[test]
    fn a_file_is_downloaded_once() {
        let case = Case::new(vec![All(CONTENT)], "d7a8fbb3");
        let mut seen = Vec::new();
        let path = case.cache.fetch(&case.file, &mut |done, total| seen.push((done, total))).unwrap();
        assert_eq!(fs::read(&path).unwrap(), CONTENT);
        let total = CONTENT.len() as u64;
        assert_eq!((seen[0], seen[seen.len() - 1]), ((0, Some(total)), (total, Some(total))));
        // The server is gone by now.
        assert_eq!(case.fetch().unwrap(), path);
        assert_eq!((case.asked(), case.files()), (vec![None], vec!["w-d7a8fbb3.pth".to_string()]));
    }

    #[test]
    fn a_broken_connection_is_continued() {
        let case =
            Case::new(vec![Cut(CONTENT, 10), Status("503 Service Unavailable"), Rest(CONTENT)], SHA256);
        let mut least = Vec::new();
        let path = case.cache.fetch(&case.file, &mut |done, _| least.push(done)).unwrap();
        assert_eq!(fs::read(path).unwrap(), CONTENT);
        assert_eq!(case.asked(), [None, Some(10), Some(10)]);
        assert!(least.is_sorted(), "{least:?}");
    }

    #[test]
    fn a_download_that_failed_goes_on_the_next_time() {
        let broken = || Status("503 Service Unavailable");
        let case =
            Case::new(vec![Cut(CONTENT, 10), broken(), broken(), broken(), broken(), Rest(CONTENT)], SHA256);
        let error = case.fetch().unwrap_err();
        assert!(matches!(error.reason, Reason::Download { .. }), "{error}");
        assert!(error.to_string().contains("503"), "{error}");
        assert_eq!(case.files(), ["w-d7a8fbb3.pth.partial"]);
        let path = case.fetch().unwrap();
        assert_eq!(fs::read(path).unwrap(), CONTENT);
        assert_eq!(case.asked().last(), Some(&Some(10)));
        assert_eq!(case.files(), ["w-d7a8fbb3.pth"]);
    }

    #[test]
    fn other_content_is_refused_and_removed() {
        let case = Case::new(vec![All(b"not what was published")], "d7a8fbb3");
        let error = case.fetch().unwrap_err();
        assert!(matches!(error.reason, Reason::Digest { .. }), "{error}");
        assert!(error.to_string().contains("expected d7a8fbb3"), "{error}");
        assert!(case.files().is_empty());
    }

    /// The start that is there may be that of another file: then everything comes again, once.
    #[test]
    fn a_wrong_start_is_thrown_away() {
        let case = Case::new(vec![Rest(CONTENT), All(CONTENT)], SHA256);
        fs::create_dir_all(case.dir.path().join("hub/checkpoints")).unwrap();
        fs::write(case.dir.path().join("hub/checkpoints/w-d7a8fbb3.pth.partial"), b"wrong").unwrap();
        assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        assert_eq!(case.asked(), [Some(5), None]);
    }

    #[test]
    fn servers_that_ignore_the_range_or_answer_with_another() {
        for answers in
            [vec![Cut(CONTENT, 7), All(CONTENT)], vec![Cut(CONTENT, 7), Wrong(CONTENT, 3), All(CONTENT)]]
        {
            let case = Case::new(answers, SHA256);
            assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        }
    }

    #[test]
    fn what_is_not_there_is_not_asked_for_again() {
        let case = Case::new(vec![Status("404 Not Found")], SHA256);
        let error = case.fetch().unwrap_err().to_string();
        assert!(error.contains("404 Not Found") && !error.contains('\n'), "{error}");
        assert_eq!(case.asked().len(), 1);
    }
}
