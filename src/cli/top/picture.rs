//! What `top` shows.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Block, Borders, Cell, Clear, Paragraph, Row as TableRow, Sparkline, Table, TableState,
};

use super::super::connections::{known, safe, size, time};
use super::super::status;
use super::watch::{self, Rates, ShownRow, ShownSource};
use super::{KeyMode, Top, TopList};
use crate::control::ServiceStatus;

/// What the keys do.
const HELP: [(&str, &str); 11] = [
    ("Tab, ← →", "the next list: services, connections, sources"),
    ("↑ ↓, PgUp, PgDn", "another line"),
    ("s", "sort by something else"),
    ("/", "only services, addresses and ids with this"),
    ("k", "end this connection, or all of this source"),
    ("b", "ban this source for an hour"),
    ("p", "pause this service, or let it go on"),
    ("+ -", "look less often, or more often"),
    ("Space", "hold the picture, or go on"),
    ("?", "this"),
    ("q, Esc", "leave"),
];

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const WARNING: Style = Style::new().fg(Color::Yellow);

/// Of how many columns a wide table begins.
const WIDE: u16 = 110;

pub(super) fn draw(frame: &mut Frame<'_>, top: &mut Top) {
    let services = top.services().len() as u16;
    let area = frame.area();
    // Of a low terminal the lists get most.
    let graph = if area.height >= 20 { 4 } else { 0 };
    let most = area.height.saturating_sub(graph + 8) / 2;
    let [head, graphs, service_list, list, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(graph),
        Constraint::Length((services + 1).clamp(2, most.max(2))),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_head(frame, head, top);
    if graph > 0 {
        draw_graphs(frame, graphs, top);
    }
    draw_services(frame, service_list, top);
    match top.list {
        TopList::Sources => draw_sources(frame, list, top),
        TopList::Services | TopList::Connections => draw_connections(frame, list, top),
    }
    draw_foot(frame, foot, top);
    if top.mode == KeyMode::Help {
        draw_help(frame, area);
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, top: &Top) {
    let Some(status) = &top.watch.status else {
        let text = match &top.watch.error {
            Some(error) => Span::styled(error.to_string(), BAD),
            None => Span::raw("looking…"),
        };
        return frame.render_widget(Paragraph::new(text), area);
    };
    let mut first = vec![
        Span::styled(format!("{} {}", top.title.name, status.version), BOLD),
        Span::raw(format!(
            "  pid {}  {}  up {}  generation {}",
            status.pid,
            status::state(status.state),
            status::uptime(status.uptime_s),
            status.generation,
        )),
    ];
    let rejected = match status.reloads.failed {
        0 => Span::raw(""),
        failed => Span::styled(format!(", {failed} rejected"), WARNING),
    };
    first.extend([Span::raw(format!("  reloads {}", status.reloads.ok)), rejected]);
    if status.bans > 0 {
        first.push(Span::styled(format!("  bans {}", status.bans), WARNING));
    }
    if status.log_records_dropped > 0 {
        first.push(Span::styled(format!("  log records dropped {}", status.log_records_dropped), WARNING));
    }
    let down = status.services.iter().find_map(|service| {
        let reason = service.down.as_deref()?;
        Some(format!("{} is down: {reason}", service.name))
    });
    let unreachable = status.services.iter().find_map(|service| {
        service.unreachable.first().map(|unreachable| format!("{}: {unreachable}", service.name))
    });
    let waits = status.waits_for.as_ref().map(|waits| format!("waits for {waits}"));
    let second = match (&top.watch.error, waits, down.or(unreachable)) {
        (Some(error), _, _) => Line::styled(error.to_string(), BAD),
        (None, Some(waits), _) => Line::styled(waits, WARNING),
        (None, None, Some(down)) => Line::styled(down, BAD),
        (None, None, None) => {
            let live = top.watch.connections.len();
            let processes: u32 = status.services.iter().map(|service| service.spares).sum();
            let queued: u64 = status.services.iter().map(|service| service.queued).sum();
            Line::styled(format!("{live} connections, {processes} spares, {queued} queued"), DIM)
        }
    };
    frame.render_widget(Paragraph::new(vec![Line::from(first), second]), area);
}

fn draw_graphs(frame: &mut Frame<'_>, area: Rect, top: &Top) {
    let areas = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1), Constraint::Fill(1)]);
    let [accepted, failed, took] = areas.areas(area);
    draw_rate(frame, accepted, "accepted", top, |rates| rates.accepted, Color::Green);
    let failures = |rates: &Rates| rates.refused + rates.timeouts + rates.crashes;
    draw_rate(frame, failed, "refused or failed", top, failures, Color::Red);
    let history = &top.watch.history;
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let last = history.back().copied().unwrap_or_default();
    let name = format!("99% took {}", known(last.most_took.map(short)));
    let aside = format!("half {}", known(last.half_took.map(short)));
    // Seconds beside milliseconds: what is ten times as long is as much higher, wherever it begins.
    let height = |rates: &Rates| rates.most_took.map_or(0.0, |most| 10.0 * (1.0 + millis(most)).log10());
    draw_graph(frame, took, name, |_| aside, history.iter().map(height), Color::Blue);
}

fn draw_rate(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &str,
    top: &Top,
    value: impl Fn(&Rates) -> f64,
    color: Color,
) {
    let history = &top.watch.history;
    let name = format!("{name} {:.0}/s", history.back().map_or(0.0, &value));
    draw_graph(frame, area, name, |most| format!("most {most}/s"), history.iter().map(value), color);
}

/// `aside` is said where there is room, and hears the greatest that is shown.
fn draw_graph(
    frame: &mut Frame<'_>,
    area: Rect,
    name: String,
    aside: impl FnOnce(u64) -> String,
    values: impl Iterator<Item = f64>,
    color: Color,
) {
    let values: Vec<u64> = values.map(|value| value.round() as u64).collect();
    // A bar a column, the newest at the right, and a gap to the next graph.
    let area = Rect { width: area.width.saturating_sub(1), ..area };
    let shown = usize::from(area.width).min(values.len());
    let values = values.get(values.len() - shown..).unwrap_or_default();
    let most = values.iter().max().copied().unwrap_or(0);
    let aside = format!("  {}", aside(most));
    let has_room = name.chars().count() + aside.chars().count() <= usize::from(area.width);
    let aside = if has_room { Span::styled(aside, DIM) } else { Span::raw("") };
    let title = Line::from(vec![Span::styled(name, BOLD), aside]);
    let block = Block::new().borders(Borders::TOP).border_style(DIM).title(title);
    let graph = Sparkline::default().block(block).data(values).max(most.max(1)).style(Style::new().fg(color));
    frame.render_widget(graph, area);
}

/// A time in a few characters.
fn short(time: Duration) -> String {
    match time.as_micros() {
        micros @ 0..1_000 => format!("{micros}µs"),
        micros @ 1_000..10_000 => format!("{:.1}ms", micros as f64 / 1e3),
        micros @ 10_000..1_000_000 => format!("{}ms", micros / 1_000),
        _ => age(time),
    }
}

fn head<const N: usize>(names: [&str; N]) -> TableRow<'static> {
    let cells = names.map(|name| Cell::from(number_or_name(name)));
    TableRow::new(cells).style(DIM.add_modifier(Modifier::UNDERLINED))
}

/// What begins with `>` is above numbers.
fn number_or_name(name: &str) -> Line<'static> {
    match name.strip_prefix('>') {
        Some(name) => Line::raw(name.to_owned()).right_aligned(),
        None => Line::raw(name.to_owned()),
    }
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::raw(text).right_aligned())
}

fn rate(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value < 10.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

fn draw_services(frame: &mut Frame<'_>, area: Rect, top: &mut Top) {
    let rows: Vec<TableRow<'_>> = top.services().iter().map(|service| service_row(service, top)).collect();
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(7),
        Constraint::Length(11),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(5),
    ];
    let names =
        ["SERVICE", "STATE", ">CONNECTIONS", ">SPARES", ">QUEUED", ">ACC/s", ">REF/s", ">TIME/s", ">CRASH"];
    let table = Table::new(rows, widths).header(head(names)).row_highlight_style(CHOSEN).column_spacing(1);
    draw_list(frame, area, table, top, TopList::Services);
}

fn service_row(service: &ServiceStatus, top: &Top) -> TableRow<'static> {
    let rates = top.watch.rates.get(&service.name).copied().unwrap_or_default();
    let (state, style) = match service {
        ServiceStatus { down: Some(_), .. } => ("down", BAD),
        ServiceStatus { paused: true, .. } => ("paused", WARNING),
        ServiceStatus { unreachable, .. } if !unreachable.is_empty() => ("hidden", BAD),
        _ => ("serving", Style::new()),
    };
    let is_full = service.max_connections > 0 && service.active >= service.max_connections;
    let connections = format!("{}/{}", service.active, service.max_connections);
    TableRow::new(vec![
        Cell::from(service.name.clone()),
        Cell::from(state).style(style),
        right(connections).style(if is_full { WARNING } else { Style::new() }),
        right(service.spares.to_string()),
        right(service.queued.to_string()),
        right(rate(rates.accepted)),
        right(rate(rates.refused)),
        right(rate(rates.timeouts)),
        right(service.crashes.to_string()),
    ])
}

fn draw_connections(frame: &mut Frame<'_>, area: Rect, top: &mut Top) {
    let is_wide = area.width >= WIDE;
    let [title, list] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
    let rows = top.connections();
    draw_title(frame, title, top, rows.len());
    // Only what is shown is asked for what it uses.
    let from = top.state(TopList::Connections).offset().min(rows.len());
    let shown = rows.iter().skip(from).take(usize::from(list.height));
    let empty: Vec<TableRow<'_>> = (0..from).map(|_| TableRow::default()).collect();
    let after = rows.len().saturating_sub(from + usize::from(list.height));
    let table_rows: Vec<TableRow<'_>> = empty
        .into_iter()
        .chain(shown.map(|row| connection_row(row, is_wide)))
        .chain((0..after).map(|_| TableRow::default()))
        .collect();
    let mut widths = vec![
        Constraint::Fill(1),
        Constraint::Max(12),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(7),
    ];
    let mut names = vec!["CLIENT", "SERVICE", ">AGE", ">IDLE", ">BYTES/s", ">BYTES", ">CPU", ">MEMORY"];
    if is_wide {
        widths.extend([Constraint::Length(18), Constraint::Fill(1)]);
        names.extend(["ID", "COMMAND"]);
    }
    let header: Vec<Cell<'_>> = names.into_iter().map(|name| Cell::from(number_or_name(name))).collect();
    let header = TableRow::new(header).style(DIM.add_modifier(Modifier::UNDERLINED));
    let table = Table::new(table_rows, widths).header(header).row_highlight_style(CHOSEN).column_spacing(1);
    draw_list(frame, list, table, top, TopList::Connections);
}

fn connection_row(row: &ShownRow, is_wide: bool) -> TableRow<'static> {
    let usage = watch::usage_of(row);
    let cpu = usage.as_ref().map(|usage| format!("{:.2}s", usage.cpu.as_secs_f64()));
    let memory = usage.as_ref().map(|usage| size(usage.memory_kib.saturating_mul(1024)));
    let bytes = row.bytes.map(|[received, sent]| size(received.saturating_add(sent)));
    let mut cells = vec![
        Cell::from(row.client.clone()),
        Cell::from(row.service.clone()),
        right(age(row.age)),
        right(known(row.idle.map(age))),
        right(known(row.rate.map(size))),
        right(known(bytes)),
        right(known(cpu)),
        right(known(memory)),
    ];
    if is_wide {
        let command = known(usage.map(|usage| safe(&usage.command)));
        cells.extend([Cell::from(row.id.to_string()), Cell::from(command)]);
    }
    TableRow::new(cells).style(if row.is_ending { DIM } else { Style::new() })
}

fn age(age: Duration) -> String {
    time(age.as_secs_f64())
}

fn draw_sources(frame: &mut Frame<'_>, area: Rect, top: &mut Top) {
    let [title, list] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
    let sources = top.sources();
    draw_title(frame, title, top, sources.len());
    let row = |source: &ShownSource| {
        TableRow::new(vec![
            Cell::from(source.name.clone()),
            right(source.connections.to_string()),
            right(size(source.rate)),
            right(age(source.oldest)),
            Cell::from(source.services.join(" ")),
        ])
    };
    let widths = [
        Constraint::Max(42),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Fill(1),
    ];
    let names = ["SOURCE", ">CONNECTIONS", ">BYTES/s", ">OLDEST", "SERVICES"];
    let table = Table::new(sources.iter().map(row).collect::<Vec<_>>(), widths)
        .header(head(names))
        .row_highlight_style(CHOSEN)
        .column_spacing(1);
    draw_list(frame, list, table, top, TopList::Sources);
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, table: Table<'_>, top: &mut Top, panel: TopList) {
    if top.panel == panel {
        frame.render_stateful_widget(table, area, top.state(panel));
    } else {
        let mut state = TableState::new().with_offset(top.state(panel).offset());
        frame.render_stateful_widget(table, area, &mut state);
    }
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, top: &Top, count: usize) {
    let tab = |panel: TopList, name: &'static str| {
        let style = if top.list == panel { BOLD } else { DIM };
        Span::styled(name, style)
    };
    let mut spans = vec![
        tab(TopList::Connections, "connections"),
        Span::styled(" │ ", DIM),
        tab(TopList::Sources, "sources"),
    ];
    spans.push(Span::styled(format!("  {count}, {}", top.sort_name()), DIM));
    if !top.filter.is_empty() || top.mode == KeyMode::Filter {
        spans.push(Span::styled(format!("  with \"{}\"", top.filter), WARNING));
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, top: &Top) {
    let line = match &top.mode {
        KeyMode::Confirm(action) => Line::styled(format!("{} y/n", action.question()), WARNING),
        KeyMode::Filter => Line::raw(format!("only with: {}▏  Enter to go on, Esc for all", top.filter)),
        KeyMode::Lists | KeyMode::Help => match &top.message {
            Some(message) => Line::styled(message.lines().next().unwrap_or_default().to_owned(), BOLD),
            None => {
                let held = if top.is_held { "  HELD" } else { "" };
                let keys = "q leave  ? help  Tab list  s sort  / filter  k end  b ban  p pause";
                Line::styled(format!("{keys}{held}"), DIM)
            }
        },
    };
    frame.render_widget(Paragraph::new(line), area);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (66.min(area.width), (HELP.len() as u16 + 2).min(area.height));
    let area = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    let line = |(keys, what): (&'static str, &'static str)| {
        Line::from(vec![Span::styled(format!("{keys:>16}  "), BOLD), Span::raw(what)])
    };
    let block = Block::new().borders(Borders::ALL).title("keys");
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(HELP.map(line).to_vec()).block(block), area);
}
