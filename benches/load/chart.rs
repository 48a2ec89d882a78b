//! The chart: an SVG that is readable on white and on black.

use std::fmt::Write;

use crate::results::{Clients, P50, RATE, Results, Server, whole};

const NAMES: f64 = 270.0;
const PANEL: f64 = 172.0;
const GAP: f64 = 14.0;
/// Room for the number behind a bar.
const NUMBER: f64 = 48.0;
const ROW: f64 = 19.0;
const BAR: f64 = 12.0;
const TOP: f64 = 62.0;

const STYLE: &str = "
  text { font: 12px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328 }
  .page { fill: #ffffff } .title { font-size: 15px; font-weight: 600 } .head { font-weight: 600 }
  .quiet { fill: #59636e; font-size: 11px } .own { font-weight: 600 }
  rect.own { fill: #0969da } rect.c { fill: #8c959f } rect.peer { fill: #d4a72c }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .quiet { fill: #9198a1 }
    rect.own { fill: #4493f8 } rect.c { fill: #6e7681 } rect.peer { fill: #9e7a1f }
  }
";

/// One column of bars.
struct Panel {
    head: String,
    clients: Clients,
    column: usize,
}

pub(crate) fn draw(results: &Results, title: &str) -> String {
    let clients: Vec<Clients> = results.clients().into_iter().collect();
    let mut panels: Vec<Panel> = clients
        .iter()
        .map(|clients| {
            // "that leave" would reach into the next panel.
            let head = match clients.leave {
                true => format!("connections/s, {} leaving", clients.number),
                false => format!("connections/s, {}", clients.words()),
            };
            Panel { head, clients: *clients, column: RATE }
        })
        .collect();
    panels.extend(clients.first().map(|least| {
        let head = format!("p50 µs, {}", least.words());
        Panel { head, clients: *least, column: P50 }
    }));
    let mut body = String::new();
    let mut y = TOP;
    for group in results.servers.chunk_by(|one, next| one.class == next.class) {
        y += 12.0;
        text(&mut body, 12.0, y + BAR, "head", heading(&group[0].class));
        y += ROW + 1.0;
        let full: Vec<f64> = panels.iter().map(|panel| panel.full(results, group)).collect();
        for server in group {
            row(&mut body, results, server, &panels, &full, y);
            y += ROW;
        }
    }
    for (panel, x) in panels.iter().zip(places()) {
        text(&mut body, x, TOP - 8.0, "head", &panel.head);
    }
    y += 14.0;
    legend(&mut body, y);
    let width = NAMES + panels.len() as f64 * (PANEL + GAP) + 8.0;
    let height = y + 26.0;
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" role="img">"#
    );
    let _ = writeln!(svg, "<title>{}</title>\n<style>{STYLE}</style>", escaped(title));
    let _ = writeln!(svg, r#"<rect class="page" width="100%" height="100%"/>"#);
    text(&mut svg, 12.0, 24.0, "title", title);
    svg + &body + "</svg>"
}

impl Panel {
    /// What the longest bar of a group stands for; what is greater is cut off.
    fn full(&self, results: &Results, group: &[Server]) -> f64 {
        let mut values: Vec<f64> = group
            .iter()
            .map(|server| results.median(&self.clients, &server.name, self.column))
            .filter(|value| value.is_finite())
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        let greatest = values.last().copied().unwrap_or(1.0);
        // One that is very slow must not make the others dots.
        let cut = values.get(values.len() / 2).map_or(greatest, |median| median * 3.0);
        if self.column == P50 { greatest.min(cut) } else { greatest }
    }
}

/// Where the panels begin.
fn places() -> impl Iterator<Item = f64> {
    (0_u32..).map(|panel| NAMES + f64::from(panel) * (PANEL + GAP))
}

fn row(body: &mut String, results: &Results, server: &Server, panels: &[Panel], full: &[f64], y: f64) {
    let kind = match server.name.as_str() {
        name if name.starts_with("preforkd") => "own",
        name if name.starts_with("C ") => "c",
        _ => "peer",
    };
    text(body, 20.0, y + BAR - 2.0, if kind == "own" { "own" } else { "" }, &server.name);
    for ((panel, full), x) in panels.iter().zip(full).zip(places()) {
        let value = results.median(&panel.clients, &server.name, panel.column);
        if !value.is_finite() {
            text(body, x, y + BAR - 2.0, "quiet", "none");
            continue;
        }
        let length = ((PANEL - NUMBER) * (value / full).min(1.0)).max(1.0);
        let _ = writeln!(
            body,
            r#"<rect class="{kind}" x="{x:.0}" y="{y:.0}" width="{length:.1}" height="{BAR}" rx="1.5"/>"#
        );
        let mut number = format!("{}{}", if value > *full { "→ " } else { "" }, whole(value));
        if !results.clean(panel.clients, &server.name) {
            number.push_str(" *");
        }
        text(body, x + length + 5.0, y + BAR - 2.0, "quiet", &number);
    }
}

fn heading(class: &str) -> &str {
    match class {
        "fork" => "A process forked for each connection",
        "spare" => "Processes ahead of their connections; threads; events",
        "exec" => "A program executed for each connection",
        other => other,
    }
}

fn legend(body: &mut String, y: f64) {
    let kinds = [("own", 20.0, "preforkd"), ("c", 110.0, "plain C, to compare"), ("peer", 260.0, "others")];
    for (kind, x, words) in kinds {
        let _ = writeln!(
            body,
            r#"<rect class="{kind}" x="{x}" y="{y:.0}" width="{BAR}" height="{BAR}" rx="1.5"/>"#
        );
        text(body, x + 18.0, y + BAR - 2.0, "quiet", words);
    }
    let words = "Each group has a scale of its own. → longer than the bar. * with errors, see the table.";
    text(body, 340.0, y + BAR - 2.0, "quiet", words);
}

fn text(body: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let _ = writeln!(body, r#"<text class="{class}" x="{x:.0}" y="{y:.0}">{}</text>"#, escaped(words));
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}
