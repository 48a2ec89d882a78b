//! The recipe of preforkd.cookbook(7) that is about units; tests/suite/cookbook.rs has the others.

use crate::support::Container;
use crate::support::page::{Step, answers, sections};
use crate::support::service::said;

/// Instances of a template, as the page makes it.
pub(crate) fn instances_are_each_for_themselves(container: &Container) {
    let recipes = sections("preforkd.cookbook.7.scd");
    let (_, steps) = recipes.iter().find(|(heading, _)| heading == "MANY INSTANCES").unwrap();
    container.clean();
    for step in steps {
        match step {
            Step::File { path, text } => container.write(path, text),
            Step::Command { is_root, command, answer } => {
                assert!(is_root, "{command}: nobody else is there");
                let said = said(&container.run(command));
                assert!(answers(&said, answer), "{command}\n--- the page:\n{answer}--- here:\n{said}");
            }
        }
    }
    container.sure(
        "systemctl stop preforkd@red preforkd@blue; rm /etc/systemd/system/preforkd@.service /etc/preforkd/red.toml \
         /etc/preforkd/blue.toml; systemctl daemon-reload; rm -r /var/lib/preforkd-red /var/lib/preforkd-blue",
    );
}
