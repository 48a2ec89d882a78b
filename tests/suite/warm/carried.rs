//! Warm programs that become other ones before they have their connection.

use super::{config, served_warm, start_far};
use crate::support::client::exchange;
use crate::support::{Preforkd, Running, address, eventually, root, text, write};

/// Where its programs wait.
fn said_where(server: &Running) -> String {
    let said = server.log.wait("where", |line| line.contains("is warm at the system call"));
    said.rsplit("at the system call ").next().unwrap().split(',').next().unwrap().to_owned()
}

/// What is there for everybody who starts it, however he is started.
const TELLS: &str = "
import ctypes, os, sys
print(sys.argv, sys.orig_argv, sys.executable, sorted(os.environ.items()))
getauxval = ctypes.CDLL(None).getauxval
getauxval.restype = ctypes.c_ulong
print(ctypes.string_at(getauxval(31)), getauxval(23))
print(open('/proc/self/cmdline').read(), os.getcwd())
sys.stdout.write(sys.stdin.readline())
print([line for line in open('/proc/self/status') if line.startswith(('Name', 'SigPnd', 'SigBlk', 'SigIgn', 'SigCgt', 'Umask', 'NoNew'))])
for number in range(300):
    try:
        print(number, os.get_inheritable(number), os.path.basename(os.readlink('/proc/self/fd/%d' % number)).split('[')[0])
    except OSError:
        pass
";

#[test]
fn the_program_that_it_becomes_finds_what_it_finds_when_it_is_started() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let script = |name: &str, text: &str| {
        write(&dir.path().join(name), text);
        path(name)
    };
    let tells = script("tells.py", TELLS);
    let by_script = script(
        "interpreted",
        &format!("#!{}\n", script("interpreter", &format!("#!/usr/bin/env -S python3 {tells}\n"))),
    );
    for program in [
        script("env", &format!("#!/usr/bin/env python3\n{TELLS}")),
        script("split", &format!("#!/usr/bin/env -S -u OWN ONE=1 python3 -X utf8\n{TELLS}")),
        script("emptied", &format!("#!/usr/bin/env -iS PATH=/usr/bin python3\n{TELLS}")),
        // As a wrapper does it: signals that are ignored, copies of the connection, a directory, variables.
        script(
            "wrapper",
            &format!(
                "#!/bin/sh\ntrap '' SYS USR1\nexec 5<&0 6>&1 </dev/null 0<&5\ncd /usr\nexport TWO=2\nexec env python3 {tells} \"$@\"\n"
            ),
        ),
        script("bash", &format!("#!/bin/bash\nexec 9<&0\nexec -a zero python3 {tells}\n")),
        by_script,
    ] {
        let exec = format!("['{program}', 'one', 'two words']");
        let keys = "environment = { OWN = \"x\" }\numask = \"0123\"";
        let told = |warm: bool| {
            let address = address::fresh();
            if warm {
                let server = start_far(address, &exec, keys);
                let told = text(&exchange(address, b"a line\n"));
                eventually("its end", || server.count("completed") == 1);
                assert_eq!(served_warm(&server), 1, "{program}: {:?}", server.log.all());
                assert_eq!(said_where(&server), "read", "{program}");
                return told;
            }
            // Nobody of such a service is told who calls.
            let config = config(address, &exec, keys).replace("\"start\"", "\"spare\"");
            let server =
                Preforkd::run(&config.replace("spare = 2", "spare = 1\nmax_connections = 1")).start();
            let told = text(&exchange(address, b"a line\n"));
            eventually("its end", || server.count("completed") == 1);
            assert_eq!(served_warm(&server), 0, "{program}: {:?}", server.log.all());
            told
        };
        let (cold, warm) = (told(false), told(true));
        assert!(cold.contains("a line\n[") && cold.contains("0 True socket:"), "{program}: {cold}");
        assert_eq!(cold, warm, "{program}");
    }
}

#[test]
fn what_cannot_be_warm_is_not_started_before_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut programs = vec!["busybox cat".to_owned(), "env LD_PRELOAD= cat".to_owned()];
    if root("a program that is another user") {
        std::fs::copy("/bin/cat", path("cat")).unwrap();
        std::fs::set_permissions(path("cat"), std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
        programs.push(path("cat"));
    }
    write(&dir.path().join("text"), "exec cat\n");
    std::fs::set_permissions(path("text"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    programs.push(path("text"));
    for program in programs {
        let address = address::fresh();
        let server = start_far(address, &format!("['/bin/sh', '-c', 'exec {program}']"), "");
        for said in ["hello", "again"] {
            assert_eq!(text(&exchange(address, said.as_bytes())), said, "{program}");
        }
        eventually("their end", || server.count("completed") == 2);
        assert_eq!(said_where(&server), "execve", "{program}");
        assert!(server.log.count(|line| line.contains("WARN")) == 0, "{program}: {:?}", server.log.all());
    }
    // What is not there is as it would be: the shell says so, which is a write.
    let address = address::fresh();
    let server = start_far(address, "['/bin/sh', '-c', 'exec nonesuch || true']", "");
    assert_eq!(text(&exchange(address, b"")), "");
    server.log.wait("its record", |line| line.contains(": exited 127 after") && line.ends_with(", warm)"));
}
