// What the examples of the library's documentation run on: the program itself, which serves one client.

/// In the program that is served: all of it. In the test: starts that, says this to it, and checks what it answers.
fn run_example(
    serve: impl preforkd::Handler,
    says: &str,
    is_answered: impl FnOnce(&str),
) -> std::process::ExitCode {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Command, ExitCode, Stdio};
    if std::env::args_os().len() > 1 {
        return preforkd::Server::new("example").handler("example", serve).main();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["serve", "127.0.0.1:0", "--workers", "1"]).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut server = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut client = std::net::TcpStream::connect(line.trim().rsplit(' ').next().unwrap()).unwrap();
    client.write_all(says.as_bytes()).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    drop(client);
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
    let record = log.find(|line| line.contains(": connection ")).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(record.contains(": exited 0"), "{record}");
    is_answered(&answer);
    ExitCode::SUCCESS
}
