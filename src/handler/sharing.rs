//! Handlers whose connections share state, without a type of their own.

use std::io;

use super::{ClientConnection, Handler, NoOptions};
use crate::shared::{Layout, SharedError};

/// A function that declares what is shared, and a closure over that and the connection.
pub(crate) struct SharingHandler<S, D, F> {
    declare: D,
    serve: F,
    /// What was declared last.
    state: Option<S>,
}

impl<S, D, F> SharingHandler<S, D, F> {
    pub(crate) fn new(declare: D, serve: F) -> Self {
        SharingHandler { declare, serve, state: None }
    }
}

impl<S, D, F> Handler for SharingHandler<S, D, F>
where
    S: Sync + 'static,
    D: Fn(&mut Layout) -> S + Sync + 'static,
    F: Fn(&S, &mut ClientConnection<'_>) -> io::Result<()> + Sync + 'static,
{
    type Options = NoOptions;

    fn share(&mut self, layout: &mut Layout) {
        self.state = Some((self.declare)(layout));
    }

    fn serve(&self, connection: &mut ClientConnection<'_>) -> io::Result<()> {
        let state = self.state.as_ref().ok_or(SharedError::NotYet)?;
        (self.serve)(state, connection)
    }
}
