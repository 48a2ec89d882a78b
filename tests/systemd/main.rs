//! preforkd on real systemd: the Debian package in Debian 12 and 13, each booted once as a container, used with
//! `systemctl`, `journalctl` and real clients.
//!
//! `tests/systemd/run` makes what this needs and runs it; see there for how to run a part of it. The tests of a release
//! run one after the other, in the order of [`TESTS`]; each begins with a service of its own configuration.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that cannot go on says why and fails"
)]

mod support;

mod accept;
mod activation;
mod analyze;
mod cookbook;
mod journal;
mod library;
mod load;
mod migration;
mod package;
mod profiles;
mod reload;
mod start;
mod stop;
mod store;
mod upgrade;
mod varlink;
mod watchdog;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use support::{Container, say};

/// A test: its name, and what it does.
type Test = (&'static str, fn(&Container));

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*]
    };
}

const TESTS: &[Test] = tests![
    package::it_serves_once_it_is_installed,
    analyze::verify_prints_nothing,
    analyze::the_service_is_as_safe_as_promised,
    analyze::the_profiles_are_as_safe_as_promised,
    start::start_returns_when_it_serves,
    start::what_a_program_finds_says_nothing_of_systemd,
    start::a_broken_configuration_is_not_tried_again,
    start::status_is_a_line_worth_reading,
    reload::reload_returns_when_the_new_configuration_is_in_force,
    reload::a_broken_configuration_changes_nothing,
    store::a_restart_keeps_what_waits_in_the_backlog,
    store::a_restart_drains_while_newcomers_wait,
    store::a_unix_socket_is_kept_too,
    store::stale_listeners_are_removed_from_the_store,
    load::reloads_refuse_and_cut_nobody,
    load::restarts_refuse_and_cut_nobody,
    load::upgrades_refuse_and_cut_nobody,
    load::a_killed_supervisor_refuses_nobody,
    upgrade::connections_stay_and_are_counted_limited_and_reaped,
    upgrade::ten_upgrades_leave_nothing_more_than_one,
    upgrade::a_broken_binary_is_refused,
    upgrade::a_crash_after_an_upgrade_refuses_nobody,
    upgrade::usr2_upgrades,
    stop::stop_drains_and_says_how_far_it_is,
    stop::stop_ends_with_the_last_connection,
    watchdog::a_stopped_worker_is_replaced,
    watchdog::a_stopped_supervisor_is_restarted,
    journal::a_connection_tells_its_whole_story,
    journal::a_story_goes_on_through_reload_and_upgrade,
    journal::every_message_is_explained,
    journal::a_flood_is_accounted_for,
    journal::a_journal_that_hangs_blocks_nobody,
    journal::a_restart_of_journald_loses_nothing_of_a_gentle_load,
    journal::a_restart_of_journald_loses_what_was_in_flight_at_most,
    varlink::varlinkctl_finds_and_calls_it,
    varlink::groups_look_and_act,
    activation::a_socket_unit_starts_the_service,
    activation::socket_units_give_their_names,
    library::a_program_of_ones_own_is_a_unit_of_ones_own,
    accept::both_sides_of_the_manual_serve_alike,
    cookbook::instances_are_each_for_themselves,
    profiles::socket_activated_serves_without_a_network,
    profiles::programs_get_what_they_want,
    profiles::programs_are_warm_under_the_unit,
    profiles::root_runs_programs_as_others,
    profiles::sandboxes_have_namespaces,
    profiles::cgroups_end_all_of_a_connection,
    profiles::credentials_reach_who_names_them,
    profiles::ports_below_1024_can_be_listened_at,
    profiles::home_directories_can_be_read,
    profiles::setuid_programs_become_another_user,
    profiles::sshd_gives_the_whole_machine,
    package::an_upgrade_of_the_package_stops_no_connection,
    package::an_upgrade_to_a_broken_package_stops_nothing,
    package::remove_and_purge_leave_nothing,
    // It leaves the machine with other packages.
    migration::a_machine_moves_and_refuses_nobody,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted =
        |test: &&Test| filters.is_empty() || filters.iter().any(|part| test.0.contains(part.as_str()));
    let tests: Vec<&Test> = TESTS.iter().filter(wanted).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|test| println!("{}: test", test.0));
        return ExitCode::SUCCESS;
    }
    let Some(roots) = std::env::var_os("PREFORKD_TEST_ROOTS") else {
        eprintln!("no PREFORKD_TEST_ROOTS; tests/systemd/run sets it");
        return ExitCode::FAILURE;
    };
    let package = PathBuf::from(std::env::var_os("PREFORKD_TEST_DEB").unwrap_or_default());
    let releases: Vec<PathBuf> = std::env::split_paths(&roots).collect();

    let (mut passed, mut failed) = (0, Vec::new());
    thread::scope(|scope| {
        let (package, tests) = (package.as_path(), tests.as_slice());
        let start = |root: &PathBuf| {
            let root = root.clone();
            scope.spawn(move || release(&root, package, tests))
        };
        let runs: Vec<_> = releases.iter().map(start).collect();
        for run in runs {
            let (good, bad) = run.join().unwrap();
            passed += good;
            failed.extend(bad);
        }
    });
    for (name, reason) in &failed {
        println!("\n---- {name}\n{reason}");
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    let skipped = TESTS.len() - tests.len();
    let failed = failed.len();
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {skipped} filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the tests in one release: how many passed, and which did not and why.
fn release(
    root: &std::path::Path,
    package: &std::path::Path,
    tests: &[&Test],
) -> (usize, Vec<(String, String)>) {
    let release = support::release_of(root);
    let begun = Instant::now();
    let container = match catch_unwind(|| Container::boot(root, package)) {
        Ok(container) => container,
        Err(_) => return (0, vec![(release, support::failure::take())]),
    };
    say(&format!(
        "{release}: systemd {}, booted and installed in {:.1?}",
        container.systemd(),
        begun.elapsed()
    ));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in tests {
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| test(&container)));
        let took = begun.elapsed().as_secs_f32();
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        say(&format!("test {release}::{name} ... {verdict} ({took:.1} s)"));
        match result {
            Ok(()) => passed += 1,
            Err(_) => {
                let reason = support::failure::take();
                failed.push((format!("{release}::{name}"), format!("{reason}\n{}", container.post_mortem())));
            }
        }
    }
    (passed, failed)
}
