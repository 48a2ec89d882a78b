//! Which files are read together, and in which form.

use std::path::PathBuf;

use super::super::files::read;
use super::*;
use crate::import::{ImportError, ImportRequest};

/// What of these files is read, all of which are named.
fn of_files(files: &[(&str, &str)]) -> Result<String, ImportError> {
    let directory = tempfile::tempdir().unwrap();
    let write = |(name, text): &(&str, &str)| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let paths: Vec<PathBuf> = files.iter().map(write).collect();
    let request = ImportRequest { paths: &paths, root: directory.path(), format: None };
    read(&request).map(printed)
}

const ECHO: &str = "echo stream tcp nowait root /bin/cat cat\n";

#[test]
fn a_file_without_services_does_not_hide_the_others() {
    let both = of_files(&[("inetd.conf", "# nothing\n"), ("other", ECHO)]).unwrap();
    assert!(both.contains("\n[service.echo]\n"), "{both}");
    assert!(both.contains("inetd.conf: dropped: all of it: there is no service in it"), "{both}");
    let alone =
        of_files(&[("inetd.conf", "# nothing\n"), ("xinetd.conf", "defaults\n{\ninstances = 5\n}\n")]);
    assert!(matches!(&alone, Err(ImportError::Empty(path)) if path.ends_with("inetd.conf")), "{alone:?}");
}

#[test]
fn a_mark_of_byte_order_is_no_text() {
    for (name, text, wanted) in [
        ("inetd.conf", format!("\u{feff}{ECHO}"), "\n[service.echo]\n"),
        ("x", "\u{feff}service x\n{\ntype = UNLISTED\nport = 7\nsocket_type = stream\nwait = no\nuser = root\nserver = /bin/cat\n}\n".to_owned(), "[service.x]"),
        ("run", "\u{feff}#!/bin/sh\nexec tcpserver 0 7 /bin/cat\n".to_owned(), "\nexec = [\"/bin/cat\"]\n"),
    ] {
        let text = of_files(&[(name, &text)]).unwrap();
        assert!(text.contains(wanted), "{name}: {text}");
        assert!(!text.contains('\u{feff}'), "{text}");
    }
}

#[test]
fn a_script_is_a_script_whatever_its_lines_look_like() {
    let script = "#!/bin/sh\nservice apache start\nservice x\ninclude /x\n";
    assert!(matches!(of_files(&[("start", script)]), Err(ImportError::Unknown(_))));
    let served = of_files(&[("start", &format!("{script}tcpserver 0 7 /bin/cat\n"))]).unwrap();
    assert!(served.contains("exec = [\"/bin/cat\"]"), "{served}");
}
