//! Becoming another program, with all that can be prepared before there is a connection.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fmt::{self, Write};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use super::fd;

/// A program, its arguments, and its environment: a part that is always the same, and a part that is written anew for
/// each start, into room that is kept.
#[derive(Debug)]
pub(crate) struct Image {
    path: CString,
    /// Owns what `argv` points to.
    #[allow(dead_code, reason = "held for the pointers into it")]
    arguments: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    environment: Vec<CString>,
    envp: Vec<*const libc::c_char>,
    /// Variables of this start, each with its NUL.
    changing: Vec<u8>,
}

// SAFETY: what the pointers point to is its own, and changes only with it.
unsafe impl Send for Image {}
// SAFETY: by a shared reference, nothing of it is changed.
unsafe impl Sync for Image {}

/// Room that is made at once; more is made when it is needed.
const ROOM: usize = 1024;
const VARIABLES: usize = 32;

impl Image {
    /// The file `path`, with argv and the variables (`NAME=value`) that never change.
    pub(crate) fn new(path: CString, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        let argv = arguments.iter().map(|argument| argument.as_ptr()).chain([ptr::null()]).collect();
        let envp = Vec::with_capacity(environment.len() + VARIABLES);
        let mut image =
            Image { path, arguments, argv, environment, envp, changing: Vec::with_capacity(ROOM) };
        image.finish();
        image
    }

    /// Forgets the variables of the last start.
    pub(crate) fn clear(&mut self) {
        self.changing.clear();
        self.finish();
    }

    /// Sets a variable for this start. One with a NUL byte in it is left out.
    pub(crate) fn set(&mut self, name: &str, value: impl fmt::Display) {
        self.add(name, |text| {
            let _ = write!(Text(text), "{value}");
        });
    }

    /// Sets a variable to bytes, such as a path.
    pub(crate) fn set_bytes(&mut self, name: &str, value: &[u8]) {
        self.add(name, |text| text.extend_from_slice(value));
    }

    /// The variables of this start, each with its NUL.
    pub(crate) fn changing(&self) -> &[u8] {
        &self.changing
    }

    fn add(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
        self.envp.clear();
        self.envp.push(ptr::null());
        let start = self.changing.len();
        self.changing.extend_from_slice(name.as_bytes());
        self.changing.push(b'=');
        value(&mut self.changing);
        if self.changing.get(start..).is_some_and(|variable| variable.contains(&0)) {
            self.changing.truncate(start);
        } else {
            self.changing.push(0);
        }
    }

    /// No more variables for this start: [`Image::exec`] finds all that have been set.
    pub(crate) fn finish(&mut self) {
        self.envp.clear();
        self.envp.extend(self.environment.iter().map(|variable| variable.as_ptr()));
        let changing = self.changing.split_inclusive(|&byte| byte == 0);
        self.envp.extend(changing.map(|variable| variable.as_ptr().cast::<libc::c_char>()));
        self.envp.push(ptr::null());
    }

    /// The same, with these kept open over it.
    pub(crate) fn exec_with(&self, kept: &[BorrowedFd<'_>]) -> io::Error {
        fd::keep_over_exec(kept, || self.exec())
    }

    /// Replaces this process by the program; returns only if that fails.
    pub(crate) fn exec(&self) -> io::Error {
        // SAFETY: argv ends with a null pointer, and so does envp, which is empty or made by `finish`. What they point to
        // ends with NUL, is owned by self and has not been moved since: what could move it clears envp.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        io::Error::last_os_error()
    }
}

struct Text<'a>(&'a mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}
