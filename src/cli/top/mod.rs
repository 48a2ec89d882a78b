//! `preforkd top`: what is going on, live.
//!
//! It asks the control socket as `status` and `connections` do, and the kernel for the rest, so that it costs the supervisor
//! no more than they.

mod picture;
mod watch;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;

use self::watch::{ShownRow, ShownSource, Watch};
use super::output::{complain, say};
use crate::admission::SourceName;
use crate::client::ConnectionId;
use crate::control::{Request, ServiceStatus};
use crate::exit;
use crate::handler::Title;
use crate::sys::time::Monotonic;

/// How long a ban lasts that a key has asked for.
const BAN: Duration = Duration::from_secs(3600);

const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// `top [--interval DURATION] [--once [--looks COUNT] [--size WIDTHxHEIGHT]] [--control PATH]`.
pub(super) fn command(title: Title) -> Command {
    Command::new("top")
        .about(format!("Show what the running {} does, live", title.name))
        .arg(
            Arg::new("interval")
                .long("interval")
                .value_name("DURATION")
                .value_parser(interval)
                .default_value("1s")
                .help("The time from one look to the next"),
        )
        .arg(
            Arg::new("once")
                .long("once")
                .action(ArgAction::SetTrue)
                .help("Print one picture as text, and end"),
        )
        .arg(
            Arg::new("looks")
                .long("looks")
                .value_name("COUNT")
                .value_parser(clap::value_parser!(u16).range(2..=1000))
                .default_value("2")
                .help("How often --once looks before it prints"),
        )
        .arg(
            Arg::new("size")
                .long("size")
                .value_name("WIDTHxHEIGHT")
                .value_parser(size)
                .default_value("80x24")
                .help("Of the picture that --once prints"),
        )
        .arg(super::control_argument(title))
        .arg(super::timeout_argument("10s"))
}

fn interval(text: &str) -> Result<Duration, &'static str> {
    match super::duration(text)? {
        interval if (SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(&interval) => Ok(interval),
        _ => Err("from \"100ms\" to \"60s\" is possible"),
    }
}

fn size(text: &str) -> Result<(u16, u16), &'static str> {
    let number = |text: &str| text.parse().ok().filter(|number| (10..=1000).contains(number));
    let size = text.split_once('x').and_then(|(width, height)| Some((number(width)?, number(height)?)));
    size.ok_or("write the columns and the lines, as in \"80x24\"; each from 10 to 1000")
}

/// Shows until the user leaves.
pub(super) fn run(matches: &ArgMatches, title: Title) -> ExitCode {
    let watch = Watch::new(super::control_path(matches, title), super::patience(matches));
    let interval = matches.get_one("interval").copied().unwrap_or(Duration::from_secs(1));
    let mut top = Top::new(title, watch, interval);
    if matches.get_flag("once") {
        let looks = matches.get_one("looks").copied().unwrap_or(2);
        return top.once(looks, matches.get_one("size").copied().unwrap_or((80, 24)));
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        complain(format_args!(
            "{0}: top needs a terminal; \"{0} top --once\" prints one picture",
            title.name
        ));
        return ExitCode::from(exit::USAGE);
    }
    top.watch.look();
    if let Some(error) = top.watch.error.take() {
        return super::unanswered(&error, title);
    }
    let result = ratatui::try_init().and_then(|mut terminal| {
        let result = top.follow(&mut terminal);
        ratatui::try_restore().and(result)
    });
    match result {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            complain(format_args!("{}: cannot use the terminal: {error}", title.name));
            ExitCode::from(exit::OS)
        }
    }
}

/// The lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TopList {
    Services,
    Connections,
    Sources,
}

/// What connections are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SortKey {
    Age,
    Rate,
    Bytes,
    Idle,
    Client,
}

impl SortKey {
    fn next(self) -> SortKey {
        match self {
            SortKey::Age => SortKey::Rate,
            SortKey::Rate => SortKey::Bytes,
            SortKey::Bytes => SortKey::Idle,
            SortKey::Idle => SortKey::Client,
            SortKey::Client => SortKey::Age,
        }
    }
}

/// What keys mean now.
#[derive(Debug, PartialEq, Eq)]
enum KeyMode {
    Lists,
    /// Words are typed.
    Filter,
    Help,
    /// Yes or no.
    Confirm(Deed),
}

/// What the user may be about to do.
#[derive(Debug, PartialEq, Eq)]
enum Deed {
    End { ids: Vec<ConnectionId>, whose: String },
    Ban(SourceName),
    Pause(String),
    Resume(String),
}

impl Deed {
    fn question(&self) -> String {
        match self {
            Deed::End { ids, whose } if ids.len() == 1 => format!("End the connection of {whose}?"),
            Deed::End { ids, whose } => format!("End the {} connections of {whose}?", ids.len()),
            Deed::Ban(source) => format!("Keep {} out for an hour?", super::connections::address(*source)),
            Deed::Pause(service) => format!("Pause {service}? Clients will wait."),
            Deed::Resume(service) => format!("Let {service} go on?"),
        }
    }

    fn request(self) -> Request {
        match self {
            Deed::End { ids, .. } => Request::Kill { ids },
            Deed::Ban(source) => {
                let for_ms = u64::try_from(BAN.as_millis()).ok();
                Request::Ban { source, service: None, for_ms, kill: false }
            }
            Deed::Pause(service) => Request::Pause { service: Some(service) },
            Deed::Resume(service) => Request::Resume { service: Some(service) },
        }
    }
}

/// All of it.
#[derive(Debug)]
struct Top {
    title: Title,
    watch: Watch,
    interval: Duration,
    /// The list that the keys are for.
    panel: TopList,
    /// Which of connections and sources is shown.
    list: TopList,
    sort: SortKey,
    filter: String,
    mode: KeyMode,
    /// What came of what the user did last.
    message: Option<String>,
    is_held: bool,
    states: [TableState; 3],
}

impl Top {
    fn new(title: Title, watch: Watch, interval: Duration) -> Self {
        Top {
            title,
            watch,
            interval,
            panel: TopList::Connections,
            list: TopList::Connections,
            sort: SortKey::Age,
            filter: String::new(),
            mode: KeyMode::Lists,
            message: None,
            is_held: false,
            states: Default::default(),
        }
    }

    /// One picture on stdout.
    fn once(&mut self, looks: u16, (width, height): (u16, u16)) -> ExitCode {
        self.watch.look();
        for _ in 1..looks {
            if self.watch.error.is_some() {
                break;
            }
            std::thread::sleep(self.interval);
            self.watch.look();
        }
        if let Some(error) = self.watch.error.take() {
            return super::unanswered(&error, self.title);
        }
        match self.text(width, height) {
            Ok(text) => say(text.trim_end()),
            Err(error) => {
                complain(format_args!("{}: cannot draw: {error}", self.title.name));
                ExitCode::from(exit::SOFTWARE)
            }
        }
    }

    fn text(&mut self, width: u16, height: u16) -> io::Result<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height))?;
        terminal.draw(|frame| picture::draw(frame, self))?;
        let buffer = terminal.backend().buffer();
        let line = |row: u16| {
            let cells = (0..width).filter_map(|column| buffer.cell((column, row)));
            let line: String = cells.map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned()
        };
        Ok((0..height).map(line).collect::<Vec<_>>().join("\n"))
    }

    /// Looks once more. What was chosen stays chosen, wherever it is now.
    fn look(&mut self) {
        let service = self.chosen_service().map(|service| service.name.clone());
        let connection = self.chosen_connection().map(|row| row.id);
        let source = self.chosen_source().map(|source| source.source);
        self.watch.look();
        let services = service.and_then(|name| self.services().iter().position(|found| found.name == name));
        let connections = connection.and_then(|id| self.connections().iter().position(|row| row.id == id));
        let sources = source.and_then(|name| self.sources().iter().position(|found| found.source == name));
        self.state(TopList::Services).select(services);
        self.state(TopList::Connections).select(connections);
        self.state(TopList::Sources).select(sources);
    }

    fn follow(&mut self, terminal: &mut ratatui::DefaultTerminal) -> io::Result<()> {
        let mut next = Monotonic::now() + self.interval;
        loop {
            terminal.draw(|frame| picture::draw(frame, self))?;
            if event::poll(next - Monotonic::now())? {
                match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release && self.leaves(key) => return Ok(()),
                    _ => {}
                }
            }
            let now = Monotonic::now();
            if next <= now {
                if !self.is_held {
                    self.look();
                }
                // A look that took long is followed by a pause all the same.
                next = Monotonic::now() + self.interval;
            }
        }
    }

    /// Does what a key asks for; whether it is to leave.
    fn leaves(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c'));
        }
        match std::mem::replace(&mut self.mode, KeyMode::Lists) {
            KeyMode::Lists => return self.obey(key.code),
            KeyMode::Help => {}
            KeyMode::Filter => self.type_filter(key.code),
            KeyMode::Confirm(action) => {
                if matches!(key.code, KeyCode::Char('y' | 'Y')) {
                    self.message = Some(self.watch.order(&action.request()));
                    self.look();
                }
            }
        }
        false
    }

    fn type_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => return,
            KeyCode::Esc => return self.filter.clear(),
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(character) => self.filter.push(character),
            _ => {}
        }
        self.mode = KeyMode::Filter;
    }

    fn obey(&mut self, key: KeyCode) -> bool {
        self.message = None;
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('?' | 'h') => self.mode = KeyMode::Help,
            KeyCode::Char('/') => self.mode = KeyMode::Filter,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char(' ') => self.is_held = !self.is_held,
            KeyCode::Char('+') => self.interval = (self.interval * 2).min(LONGEST_INTERVAL),
            KeyCode::Char('-') => self.interval = (self.interval / 2).max(SHORTEST_INTERVAL),
            KeyCode::Tab | KeyCode::Right => self.go_to(match self.panel {
                TopList::Services => TopList::Connections,
                TopList::Connections => TopList::Sources,
                TopList::Sources => TopList::Services,
            }),
            KeyCode::BackTab | KeyCode::Left => self.go_to(match self.panel {
                TopList::Services => TopList::Sources,
                TopList::Connections => TopList::Services,
                TopList::Sources => TopList::Connections,
            }),
            KeyCode::Up => self.move_by(-1),
            KeyCode::Down => self.move_by(1),
            KeyCode::PageUp => self.move_by(-10),
            KeyCode::PageDown => self.move_by(10),
            KeyCode::Home => self.move_by(isize::MIN),
            KeyCode::End => self.move_by(isize::MAX),
            KeyCode::Char('k') => self.confirm(|top| top.end()),
            KeyCode::Char('b') => self.confirm(|top| top.source().map(Deed::Ban)),
            KeyCode::Char('p') => self.confirm(|top| top.pause()),
            _ => {}
        }
        false
    }

    fn go_to(&mut self, panel: TopList) {
        self.panel = panel;
        if panel != TopList::Services {
            self.list = panel;
        }
        if self.state(panel).selected().is_none() {
            self.move_by(0);
        }
    }

    fn move_by(&mut self, by: isize) {
        let count = match self.panel {
            TopList::Services => self.services().len(),
            TopList::Connections => self.connections().len(),
            TopList::Sources => self.sources().len(),
        };
        let last = count.checked_sub(1);
        let state = self.state(self.panel);
        let place = state.selected().map_or(0, |place| place.saturating_add_signed(by));
        state.select(last.map(|last| place.min(last)));
    }

    fn confirm(&mut self, what: impl FnOnce(&mut Top) -> Option<Deed>) {
        match what(self) {
            Some(action) => self.mode = KeyMode::Confirm(action),
            None => {
                self.message = Some("nothing is chosen; ↑ and ↓ choose, Tab goes to another list".to_owned());
            }
        }
    }

    fn end(&mut self) -> Option<Deed> {
        match self.panel {
            TopList::Services => None,
            TopList::Connections => {
                let row = self.chosen_connection()?;
                Some(Deed::End { ids: vec![row.id], whose: row.client })
            }
            TopList::Sources => {
                let source = self.chosen_source()?;
                let of_source = self.watch.connections.iter().filter(|row| row.source == source.source);
                Some(Deed::End { ids: of_source.map(|row| row.id).collect(), whose: source.name })
            }
        }
    }

    fn source(&mut self) -> Option<SourceName> {
        match self.panel {
            TopList::Services => None,
            TopList::Connections => self.chosen_connection().map(|row| row.source),
            TopList::Sources => self.chosen_source().map(|source| source.source),
        }
    }

    fn pause(&self) -> Option<Deed> {
        let service = self.chosen_service().filter(|_| self.panel == TopList::Services)?;
        let name = service.name.clone();
        Some(if service.paused { Deed::Resume(name) } else { Deed::Pause(name) })
    }

    fn chosen_service(&self) -> Option<&ServiceStatus> {
        let [services, ..] = &self.states;
        self.services().get(services.selected()?)
    }

    fn chosen_connection(&mut self) -> Option<ShownRow> {
        let chosen = self.state(TopList::Connections).selected()?;
        self.connections().into_iter().nth(chosen)
    }

    fn chosen_source(&mut self) -> Option<ShownSource> {
        let chosen = self.state(TopList::Sources).selected()?;
        self.sources().into_iter().nth(chosen)
    }

    fn state(&mut self, panel: TopList) -> &mut TableState {
        let [services, connections, sources] = &mut self.states;
        match panel {
            TopList::Services => services,
            TopList::Connections => connections,
            TopList::Sources => sources,
        }
    }

    fn services(&self) -> &[ServiceStatus] {
        self.watch.status.as_ref().map_or(&[], |status| &status.services)
    }

    /// Those that are shown, in their order.
    fn connections(&self) -> Vec<ShownRow> {
        let has = |text: &str| text.contains(&self.filter);
        let is_shown = |row: &&ShownRow| {
            has(&row.service) || has(&row.client) || (!self.filter.is_empty() && has(&row.id.to_string()))
        };
        let mut rows: Vec<ShownRow> = self.watch.connections.iter().filter(is_shown).cloned().collect();
        let all = |row: &ShownRow| row.bytes.map(|[received, sent]| received.saturating_add(sent));
        match self.sort {
            SortKey::Age => rows.sort_by_key(|row| std::cmp::Reverse(row.age)),
            SortKey::Rate => rows.sort_by_key(|row| std::cmp::Reverse(row.rate)),
            SortKey::Bytes => rows.sort_by_key(|row| std::cmp::Reverse(all(row))),
            SortKey::Idle => rows.sort_by_key(|row| std::cmp::Reverse(row.idle)),
            SortKey::Client => rows.sort_by(|one, other| one.client.cmp(&other.client)),
        }
        rows
    }

    /// The same.
    fn sources(&self) -> Vec<ShownSource> {
        let mut sources = self.watch.sources();
        let has = |text: &String| text.contains(&self.filter);
        sources.retain(|source| has(&source.name) || source.services.iter().any(has));
        match self.sort {
            SortKey::Rate | SortKey::Bytes => sources.sort_by_key(|source| std::cmp::Reverse(source.rate)),
            SortKey::Client => {}
            SortKey::Age => sources.sort_by_key(|source| std::cmp::Reverse(source.connections)),
            SortKey::Idle => sources.sort_by_key(|source| std::cmp::Reverse(source.oldest)),
        }
        sources
    }

    /// In which order that is, in words.
    fn sort_name(&self) -> &'static str {
        match (self.list, self.sort) {
            (TopList::Sources, SortKey::Age) => "those with most connections first",
            (TopList::Sources, SortKey::Rate | SortKey::Bytes) => "the busiest first",
            (TopList::Sources, SortKey::Idle) => "with the oldest connection first",
            (_, SortKey::Age) => "the oldest first",
            (_, SortKey::Rate) => "the busiest first",
            (_, SortKey::Bytes) => "those that have moved most first",
            (_, SortKey::Idle) => "the idlest first",
            (_, SortKey::Client) => "by address",
        }
    }
}
