//! The markup of scdoc(5).

/// Text that means only itself.
pub(super) fn plain(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        // Anything may be escaped; these are all that can mean something, in a line or at its start.
        if matches!(character, '\\' | '*' | '_' | '`' | '#' | '[' | ']' | '|' | ':' | '-' | '.' | '+' | ';') {
            result.push('\\');
        }
        result.push(character);
    }
    result
}

/// A name that is typed as it is.
pub(super) fn bold(text: &str) -> String {
    format!("*{}*", plain(text))
}

/// A name that stands for something else.
pub(super) fn emphasis(text: &str) -> String {
    format!("_{}_", plain(text))
}

/// A sentence with its full stop.
pub(super) fn sentence(text: &str) -> String {
    let stop = if text.ends_with(['.', '?', '!']) { "" } else { "." };
    format!("{}{stop}", plain(text))
}
