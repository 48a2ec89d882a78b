//! Shared state among processes that are killed: at each instruction, by a tracer; in the middle of a crowd; asleep.
//!
//! All in processes of one thread, which a harness of threads could not fork.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic, unsafe_code)]

mod counters;
mod locks;
mod process;
mod queues;
mod tables;

const TESTS: &[(&str, fn())] = &[
    ("counters::a_count_is_made_or_not", counters::a_count_is_made_or_not),
    ("counters::a_share_goes_with_its_process", counters::a_share_goes_with_its_process),
    ("locks::a_change_is_made_or_not", locks::a_change_is_made_or_not),
    ("locks::a_change_is_made_or_not_in_a_crowd", locks::a_change_is_made_or_not_in_a_crowd),
    ("locks::crowds_go_on_whoever_is_killed", locks::crowds_go_on_whoever_is_killed),
    ("locks::who_has_waited_longest_is_next", locks::who_has_waited_longest_is_next),
    ("locks::a_killed_owner_is_told_of_once", locks::a_killed_owner_is_told_of_once),
    ("locks::a_child_has_not_its_parents_lock", locks::a_child_has_not_its_parents_lock),
    ("locks::another_program_has_no_lock", locks::another_program_has_no_lock),
    ("locks::several_are_given_back_by_the_kernel", locks::several_are_given_back_by_the_kernel),
    ("tables::an_entry_is_put_in_or_not", tables::an_entry_is_put_in_or_not),
    ("tables::an_entry_is_changed_or_not", tables::an_entry_is_changed_or_not),
    ("tables::an_entry_is_taken_out_or_not", tables::an_entry_is_taken_out_or_not),
    ("tables::entries_are_taken_out_one_by_one", tables::entries_are_taken_out_one_by_one),
    ("tables::crowds_see_whole_entries", tables::crowds_see_whole_entries),
    ("queues::a_value_is_pushed_or_not", queues::a_value_is_pushed_or_not),
    ("queues::a_value_is_popped_or_not", queues::a_value_is_popped_or_not),
    ("queues::a_sleeper_is_woken_by_the_dead", queues::a_sleeper_is_woken_by_the_dead),
    ("queues::who_waits_for_room_is_woken_by_the_dead", queues::who_waits_for_room_is_woken_by_the_dead),
    ("queues::crowds_lose_nothing", queues::crowds_lose_nothing),
];

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    if std::env::args().any(|word| word == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("shared::{name}: test"));
        return;
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| is_wanted(name)) {
        let started = std::time::Instant::now();
        // Each in a process of its own, which may abort.
        let ending = process::wait(process::fork(test));
        let result = if ending == process::Ended::Exit(0) { "ok" } else { "FAILED" };
        println!("test {name} ... {result} ({:.1} s)", started.elapsed().as_secs_f32());
        if result == "ok" { passed += 1 } else { failed += 1 }
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out",
        TESTS.len() - passed - failed
    );
    std::process::exit(i32::from(failed > 0));
}
