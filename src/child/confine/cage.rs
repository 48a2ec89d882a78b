//! The cage of a connection process: what it may still do, whoever has taken it over. Prepared by the worker, entered by each
//! child, and never left.
//!
//! A Landlock domain for each connection: what is in one can neither trace nor signal what is in another, nor read it in
//! proc(5), though both have the same user; and of files and the network it has what the rules say. Then a filter of system calls,
//! one for a process. All of it lasts over an exec, and for everything that comes of the process.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use super::instructions::followed_by;
use super::namespaces::{MachineNamespaces, NoNamespace, OwnNamespaces};
use super::signals::{self, Silence};
use super::{filter, no_linger, own_clone3};
use crate::config::{
    AllowedFiles, AllowedPath, CallSet, FileUse, Job, Network, Sandbox, ServiceConfig, UserIds,
};
use crate::control::CageStatus;
use crate::ipc::reports::Step;
use crate::sys::seccomp::{self, Instruction};
use crate::sys::{cgroup, landlock as domain, process};

/// A cage, as every child of a worker enters it.
#[derive(Debug)]
pub(crate) struct Cage {
    ruleset: Option<OwnedFd>,
    filter: Vec<Instruction>,
    silence: Option<Silence>,
    /// What a child adds to that of its worker.
    own_filter: Vec<Instruction>,
    /// That is not needed once the worker knows its own clone3(2) from theirs.
    knows_clone3: bool,
    /// By what it knows its own calls, see [`process::mark_calls`].
    mark: u64,
    /// Who shares the worker's filters asks it whom he may signal.
    asks: bool,
    /// The worker can live with the filter.
    is_shared: bool,
    /// It does, and gains no privileges either.
    is_inherited: bool,
}

/// Who keeps the signals of programs within their connection.
#[derive(Debug)]
pub(crate) enum SignalGuard {
    /// The kernel, or nobody is to.
    Kernel,
    /// The worker: they ask here.
    Worker(OwnedFd),
    /// Nobody: what started preforkd is asked about system calls already, and the kernel asks one only.
    Missing,
}

/// What this kernel can do.
#[derive(Debug, Clone, Copy)]
struct Abilities {
    landlock: ABI,
    filters: bool,
    asks: bool,
    namespaces: MachineNamespaces,
}

impl Abilities {
    /// Those of this kernel, for this process and such a sandbox.
    fn of_this_kernel(sandbox: &Sandbox) -> Self {
        Abilities {
            landlock: ABI::from(domain::version().unwrap_or(0)),
            filters: seccomp::is_there(),
            asks: seccomp::can_ask(),
            namespaces: MachineNamespaces::of_this_machine(sandbox),
        }
    }

    /// Without `Refer`, of the second version, every domain would forbid to move files between directories.
    fn has_domains(self) -> bool {
        self.landlock >= ABI::V2
    }
}

impl Cage {
    /// Prepares that of a service, in a worker that has these namespaces; `None` if it has none.
    ///
    /// # Errors
    ///
    /// What it requires, and this kernel cannot do; a path that cannot be opened.
    pub(crate) fn new(
        service: &ServiceConfig,
        namespaces: OwnNamespaces,
        has_cgroup: bool,
    ) -> io::Result<Option<Self>> {
        let Some(sandbox) = &service.sandbox else { return Ok(None) };
        let (job, chroot) = (&service.job, service.identity.chroot.as_deref());
        let user = service.identity.user.as_ref();
        let abilities = Abilities::of_this_kernel(sandbox);
        let plan =
            KernelCage::new(sandbox, (job, user), chroot, CgroupGuard::of(service, has_cgroup), abilities);
        if let (true, Some(missing)) = (sandbox.required, &plan.unmet) {
            let text =
                format!("the sandbox cannot be as it is required: {missing}; required = false does without");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let ruleset = match abilities.has_domains() {
            true => plan.ruleset(chroot, namespaces)?,
            false => None,
        };
        let has_own_user = user.is_some_and(|user| user.range.is_some());
        // Its keys are from getrandom(2).
        let mark = RandomState::new().hash_one(0);
        let compile = |of: &Sandbox| {
            let filter = filter::compile(of, job, plan.landlock, has_own_user)?;
            Ok::<_, io::Error>(match no_linger::is_wanted(sandbox, job) {
                true => followed_by(filter, &no_linger::filter(mark)),
                false => filter,
            })
        };
        let is_shared = filter::is_shared(sandbox, job);
        let (mut filter, mut own_filter) = (Vec::new(), Vec::new());
        if plan.filters && has_cgroup && is_shared && own_clone3::is_denied(sandbox) {
            filter = compile(&own_clone3::allowed(sandbox))?;
            own_filter = own_clone3::denied();
        } else if plan.filters {
            filter = compile(sandbox)?;
        }
        // Not where a program could read the memory of one that still has the worker's: of a spare without a domain of its own, or
        // of the first process of its namespace.
        let knows_clone3 = !own_filter.is_empty()
            && matches!(job, Job::Exec(_))
            && abilities.has_domains()
            && !sandbox.pid_namespace;
        let silence = if plan.filters { Silence::new(sandbox, job, plan.landlock) } else { None };
        let asks = plan.asks;
        let is_inherited = false;
        Ok(Some(Cage {
            ruleset,
            filter,
            silence,
            own_filter,
            knows_clone3,
            mark,
            asks,
            is_shared,
            is_inherited,
        }))
    }

    /// Whether there is a filter of system calls.
    pub(crate) fn filters_calls(&self) -> bool {
        !self.filter.is_empty()
    }

    /// In the worker, once a child has tried it: takes on what its children have in common, if it can live with that. As one filter.
    pub(crate) fn share(&mut self) -> io::Result<SignalGuard> {
        let mark = self.mark;
        process::mark_calls(mark);
        let is_inherited = self.is_shared && !self.filter.is_empty();
        if !is_inherited && !self.asks {
            return Ok(SignalGuard::Kernel);
        }
        let mut filter = if is_inherited { self.filter.clone() } else { Vec::new() };
        if is_inherited && self.knows_clone3 {
            filter = followed_by(filter, &own_clone3::marked(mark));
            self.own_filter.clear();
        }
        process::gain_no_privileges()?;
        let guard = if self.asks { Cage::be_asked(&filter, mark)? } else { SignalGuard::Kernel };
        if is_inherited && !matches!(guard, SignalGuard::Worker(_)) {
            seccomp::install(&filter)?;
        }
        self.is_inherited = is_inherited;
        Ok(guard)
    }

    /// Takes on this filter, and one that asks.
    fn be_asked(filter: &[Instruction], mark: u64) -> io::Result<SignalGuard> {
        let Some(asking) = signals::asking(process::id(), mark) else {
            return Ok(SignalGuard::Missing);
        };
        match seccomp::install_asking(&followed_by(filter.to_vec(), &asking)) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(SignalGuard::Missing),
            asked => asked.map(SignalGuard::Worker),
        }
    }

    /// In a child: the part that leaves it all system calls.
    pub(crate) fn enter(&self) -> Result<(), (Step, io::Error)> {
        if !self.is_inherited {
            process::gain_no_privileges().map_err(|error| (Step::Privileges, error))?;
        }
        match &self.ruleset {
            Some(ruleset) => domain::enter(ruleset.as_fd()).map_err(|error| (Step::Domain, error)),
            None => Ok(()),
        }
    }

    /// In a child that has entered: the rest.
    pub(crate) fn close(&self) -> Result<(), (Step, io::Error)> {
        let failed = |error| (Step::Filter, error);
        if !self.filter.is_empty() && !self.is_inherited {
            seccomp::install(&self.filter).map_err(failed)?;
        }
        if !self.own_filter.is_empty() {
            seccomp::install(&self.own_filter).map_err(failed)?;
        }
        match &self.silence {
            Some(silence) => seccomp::install(&silence.of(process::id())).map_err(failed),
            None => Ok(()),
        }
    }
}

/// What the sandbox of a service comes to on this kernel, if each connection has a cgroup or not; `None` if there is none.
pub(crate) fn on_this_kernel(service: &ServiceConfig, has_cgroup: bool) -> Option<CageStatus> {
    let sandbox = service.sandbox.as_ref()?;
    let mut plan = KernelCage::new(
        sandbox,
        (&service.job, service.identity.user.as_ref()),
        service.identity.chroot.as_deref(),
        CgroupGuard::of(service, has_cgroup),
        Abilities::of_this_kernel(sandbox),
    );
    if super::is_alone(service) {
        let user = service.identity.user.as_ref().map_or_else(process::effective_user_id, |user| user.uid);
        plan.say(user != 0, "no other process can be started", "the kernel does not limit root; set user");
    }
    Some(CageStatus { in_force: plan.in_force, missing: plan.missing })
}

/// What keeps a connection process from changing cgroups of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CgroupGuard {
    /// There are none.
    None,
    /// They are another user's.
    Owner,
    /// They are its user's, or it is root: its domain has to.
    Domain,
}

impl CgroupGuard {
    fn of(service: &ServiceConfig, has_cgroup: bool) -> Self {
        let identity = &service.identity;
        let owner = identity.worker.map_or_else(process::effective_user_id, |worker| worker.uid);
        let is_another = |user: &UserIds| ![0, owner].contains(&user.uid) || user.range.is_some();
        match (has_cgroup, identity.user.as_ref().is_some_and(is_another)) {
            (false, _) => CgroupGuard::None,
            (true, true) => CgroupGuard::Owner,
            (true, false) => CgroupGuard::Domain,
        }
    }
}

/// What a sandbox comes to on a kernel.
#[derive(Debug)]
struct KernelCage<'a> {
    sandbox: &'a Sandbox,
    landlock: ABI,
    filters: bool,
    /// Programs ask their worker whom they may signal.
    asks: bool,
    /// Where nothing may be written, see [`CgroupGuard::Domain`].
    closed: Vec<PathBuf>,
    /// What of it is in force, in words.
    in_force: Vec<String>,
    /// What is not, and why.
    missing: Vec<String>,
    /// The first of that which was asked for by name.
    unmet: Option<String>,
}

impl<'a> KernelCage<'a> {
    fn new(
        sandbox: &'a Sandbox,
        (job, user): (&Job, Option<&UserIds>),
        chroot: Option<&Path>,
        guard: CgroupGuard,
        abilities: Abilities,
    ) -> Self {
        let has_own_user = user.is_some_and(|user| user.range.is_some());
        let foreign = match job {
            Job::Exec(program) if sandbox.system_calls.base == CallSet::Service => {
                filter::is_foreign(&AllowedPath::of(&program.path).outside(chroot))
            }
            _ => false,
        };
        let filters = abilities.filters && !foreign && filter::is_needed(sandbox);
        let asks = filters
            && abilities.asks
            && filter::asks_about_signals(sandbox, job, abilities.landlock, has_own_user);
        let mut plan = KernelCage {
            sandbox,
            landlock: abilities.landlock,
            filters,
            asks,
            closed: if guard == CgroupGuard::Domain { cgroup::mount_points() } else { Vec::new() },
            in_force: vec!["no new privileges".to_owned()],
            missing: Vec::new(),
            unmet: None,
        };
        let domains = abilities.has_domains();
        plan.say(
            domains,
            "siblings cannot be traced or read",
            "there is no Landlock of version 2 in this kernel",
        );
        if guard != CgroupGuard::None {
            plan.say(
                domains || guard == CgroupGuard::Owner,
                "cgroups cannot be changed",
                "there is no Landlock of version 2 in this kernel",
            );
        }
        let needs = |version: u32, kernel: &str| {
            format!("Landlock of version {version} is needed, which Linux {kernel} has")
        };
        plan.say_of_signals(job, &needs(6, "6.12"));
        if let Some(files) = &sandbox.files {
            plan.ask(domains, &files.to_string(), "there is no Landlock of version 2 in this kernel");
            let is_filtered = filters && filter::changes_no_file(sandbox, job);
            plan.say(
                abilities.landlock >= ABI::V3 || is_filtered,
                "files are not truncated",
                &needs(3, "6.2"),
            );
        }
        let calls = match (foreign, abilities.filters) {
            (true, _) => "the program is of another architecture",
            (false, false) => "there are no filters of system calls in this kernel",
            (false, true) => "",
        };
        match sandbox.network {
            Network::Any => {}
            Network::None => plan.ask(calls.is_empty(), "network: none", calls),
            Network::Client => plan.ask(calls.is_empty(), "network: client", calls),
        }
        match sandbox.system_calls.base {
            CallSet::Any => {}
            CallSet::Handler => plan.ask(calls.is_empty(), "system calls: handler", calls),
            CallSet::Service => plan.ask(calls.is_empty(), "system calls: service", calls),
        }
        if sandbox.network_namespace {
            plan.ask_for("an empty network", abilities.namespaces.network);
            let is_kept =
                abilities.landlock >= ABI::V4 || sandbox.network == Network::None && calls.is_empty();
            plan.say(is_kept, "its connection stays its client's", &needs(4, "6.7"));
        }
        if !sandbox.write_execute {
            plan.ask(calls.is_empty(), "no code that was written to memory", calls);
        }
        if let Some(bytes) = sandbox.private_tmp {
            let what = format!("/tmp and /var/tmp of its own, of {} KiB each", bytes >> 10);
            plan.ask_for(&what, abilities.namespaces.mounts);
        }
        if sandbox.pid_namespace {
            plan.ask_for("all its processes end with it", abilities.namespaces.processes);
        }
        plan
    }

    /// Landlock keeps signals in, or the filter those of a handler, who sends none. Of a program that keeps those to its
    /// worker and the supervisor, whose numbers it knows, and the worker says who else may be signalled.
    fn say_of_signals(&mut self, job: &Job, needed: &str) {
        let is_handler = matches!(job, Job::Handler(_));
        let filters = self.filters && self.sandbox.system_calls.base != CallSet::Any;
        let scope = self.landlock >= filter::SIGNAL_SCOPE;
        if filters && !scope && !is_handler {
            self.say(true, "its worker and the supervisor cannot be signalled", "");
        }
        let help = "or a user of its own for each connection";
        self.say(
            scope || filters && is_handler || self.asks,
            "siblings cannot be signalled",
            &format!("{needed}, {help}"),
        );
    }

    fn say(&mut self, is_there: bool, what: &str, why_not: &str) {
        match is_there {
            true => self.in_force.push(what.to_owned()),
            false => self.missing.push(format!("{what}: {why_not}")),
        }
    }

    /// The same about what can be asked for, and so be required.
    fn ask(&mut self, is_there: bool, what: &str, why_not: &str) {
        self.say(is_there, what, why_not);
        if !is_there && self.unmet.is_none() {
            self.unmet = self.missing.last().cloned();
        }
    }

    fn ask_for(&mut self, what: &str, obstacle: Option<NoNamespace>) {
        self.ask(obstacle.is_none(), what, &obstacle.map_or_else(String::new, |why| why.to_string()));
    }

    /// The rules of the domain.
    fn ruleset(&self, chroot: Option<&Path>, namespaces: OwnNamespaces) -> io::Result<Option<OwnedFd>> {
        let failed =
            |error: RulesetError| io::Error::other(format!("cannot make rules of Landlock: {error}"));
        let made = self.rules(namespaces).map_err(failed)?;
        let root = AllowedFiles::root();
        let (files, is_closed) = match &self.sandbox.files {
            Some(files) => (files, true),
            None => (&root, false),
        };
        let mut made = made;
        for (wanted, list) in files.lists() {
            for allowed in list {
                let path = allowed.outside(chroot);
                let opened = match PathFd::new(&path) {
                    Ok(opened) => opened,
                    Err(_) if allowed.is_optional && !path.exists() => continue,
                    Err(error) => {
                        return Err(io::Error::other(format!("cannot allow {}: {error}", path.display())));
                    }
                };
                let access = match is_closed {
                    false => BitFlags::from(AccessFs::Refer) | self.changes(),
                    true => self.access(wanted),
                };
                let (place, above) = match self.closed.is_empty() || !access.intersects(self.changes()) {
                    true => (path.clone(), false),
                    false => {
                        let place = path.canonicalize()?;
                        let is_above = self.closed.iter().any(|closed| closed.starts_with(&place));
                        if let Some(closed) = self.closed.iter().find(|closed| place.starts_with(closed)) {
                            let text = format!(
                                "cannot allow to write to {}: nobody may write below {} who has a cgroup of his own there",
                                path.display(),
                                closed.display()
                            );
                            return Err(io::Error::other(text));
                        }
                        (place, is_above)
                    }
                };
                let rule = |access: BitFlags<AccessFs>, is_directory: bool| match is_directory {
                    true => access,
                    false => access & AccessFs::from_file(self.landlock),
                };
                let own = if above { access & !self.changes() } else { access };
                let own = rule(own, path.is_dir());
                if !own.is_empty() {
                    made = made.add_rule(PathBeneath::new(opened, own)).map_err(failed)?;
                }
                for (path, is_directory) in if above { self.around(&place) } else { Vec::new() } {
                    // What is there no more needs no rule.
                    let Ok(opened) = PathFd::new(&path) else { continue };
                    let access = rule(access, is_directory);
                    if !access.is_empty() {
                        made = made.add_rule(PathBeneath::new(opened, access)).map_err(failed)?;
                    }
                }
            }
        }
        Ok(made.into())
    }

    /// What changes a cgroup, of what a domain can forbid; nothing if there is none to be changed.
    fn changes(&self) -> BitFlags<AccessFs> {
        match self.closed.is_empty() {
            true => BitFlags::EMPTY,
            false => AccessFs::WriteFile | AccessFs::MakeDir | AccessFs::RemoveDir,
        }
    }

    /// All that is below a directory but what is closed, and what that is in: rules only ever allow. Whether each is a directory.
    fn around(&self, directory: &Path) -> Vec<(PathBuf, bool)> {
        let mut found = Vec::new();
        let mut above = vec![directory.to_owned()];
        while let Some(directory) = above.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
                if self.closed.contains(&path) {
                    continue;
                }
                match self.closed.iter().any(|closed| closed.starts_with(&path)) {
                    true => above.push(path),
                    // What a link stands for is elsewhere.
                    false if kind.is_symlink() => {}
                    false => found.push((path, kind.is_dir())),
                }
            }
        }
        found
    }

    fn rules(&self, namespaces: OwnNamespaces) -> Result<RulesetCreated, RulesetError> {
        let abi = self.landlock;
        let mut rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        rules = match &self.sandbox.files {
            Some(_) => rules.handle_access(AccessFs::from_all(abi))?,
            // A domain has to forbid something: this is what nobody does, and what every domain forbids, which is given back.
            None => rules.handle_access(AccessFs::MakeBlock | AccessFs::Refer | self.changes())?,
        };
        if abi >= ABI::V4 {
            rules = match self.sandbox.network {
                // Its own connection is of the network outside, where it could be connected to somebody else, connect(2).
                _ if namespaces.network => rules.handle_access(AccessNet::from_all(abi))?,
                Network::Any => rules,
                Network::Client => rules.handle_access(AccessNet::BindTcp)?,
                Network::None => rules.handle_access(AccessNet::from_all(abi))?,
            };
        }
        if abi >= filter::SIGNAL_SCOPE {
            rules = rules.scope(Scope::Signal)?;
            if self.sandbox.network == Network::None {
                rules = rules.scope(Scope::AbstractUnixSocket)?;
            }
        }
        rules.create()
    }

    fn access(&self, wanted: FileUse) -> BitFlags<AccessFs> {
        let read = AccessFs::from_read(self.landlock);
        match wanted {
            FileUse::Read => read & !BitFlags::from(AccessFs::Execute),
            FileUse::Execute => read,
            FileUse::Write => {
                let written = AccessFs::from_write(self.landlock);
                (read | written) & !(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::MakeChar)
            }
        }
    }
}

impl fmt::Display for AllowedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut is_empty = true;
        for (wanted, list) in self.lists().into_iter().filter(|(_, list)| !list.is_empty()) {
            f.write_str(if is_empty { "files: " } else { ", " })?;
            is_empty = false;
            f.write_str(match wanted {
                FileUse::Read => "read",
                FileUse::Write => "write",
                FileUse::Execute => "execute",
            })?;
            list.iter().try_for_each(|allowed| write!(f, " {}", allowed.path.display()))?;
        }
        if is_empty { f.write_str("files: none") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SystemCalls;

    fn sandbox(files: bool, network: Network) -> Sandbox {
        Sandbox {
            files: files.then(AllowedFiles::root),
            network,
            serves_datagrams: false,
            system_calls: SystemCalls { base: CallSet::Service, allow: Vec::new(), deny: Vec::new() },
            write_execute: true,
            private_tmp: None,
            network_namespace: false,
            pid_namespace: false,
            required: true,
        }
    }

    #[test]
    fn only_what_is_asked_for_can_be_required() {
        let job = Job::Handler("echo".to_owned());
        for (files, network, landlock, filters, missing, is_met) in [
            (true, Network::None, ABI::V7, true, 0, true),
            // Debian 12: files can be truncated.
            (true, Network::None, ABI::V2, true, 0, true),
            (false, Network::Client, ABI::V2, true, 0, true),
            (true, Network::Any, ABI::V1, true, 2, false),
            (false, Network::Any, ABI::Unsupported, true, 1, true),
            (false, Network::None, ABI::V7, false, 2, false),
        ] {
            let sandbox = sandbox(files, network);
            let namespaces = MachineNamespaces::default();
            let abilities = Abilities { landlock, filters, asks: true, namespaces };
            let cage = KernelCage::new(&sandbox, (&job, None), None, CgroupGuard::None, abilities);
            assert_eq!(
                (cage.missing.len(), cage.unmet.is_none()),
                (missing, is_met),
                "{landlock:?}: {cage:#?}"
            );
        }
    }
}
