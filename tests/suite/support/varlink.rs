//! A client that speaks varlink, and a reader of interfaces that says whether replies are what these promise.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use super::{PATIENCE, Running};

/// The name of the interface of preforkd.
pub(crate) const CONTROL: &str = "org.preforkd.Control";

/// A connection to a control socket.
pub(crate) struct Varlink(BufReader<UnixStream>);

impl Varlink {
    /// To that of this server.
    pub(crate) fn to(server: &Running) -> Self {
        let stream = UnixStream::connect(server.control()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Varlink(BufReader::new(stream))
    }

    /// Sends these bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// The same to who may not be there any more.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// The next message; `None` if there will be no more.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        let mut message = Vec::new();
        match self.0.read_until(0, &mut message) {
            Ok(0) => None,
            Ok(_) => {
                assert_eq!(message.pop(), Some(0), "{}", super::text(&message));
                Some(serde_json::from_slice(&message).unwrap())
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Calls a method of preforkd's interface, and waits for its reply.
    pub(crate) fn call(&mut self, method: &str, parameters: impl Into<Value>) -> Value {
        self.send(&call(method, parameters));
        self.receive().expect("a reply")
    }
}

/// A call as it is sent.
pub(crate) fn call(method: &str, parameters: impl Into<Value>) -> Vec<u8> {
    let method = if method.contains('.') { method.to_owned() } else { format!("{CONTROL}.{method}") };
    let mut bytes = serde_json::to_vec(&json!({"method": method, "parameters": parameters.into()})).unwrap();
    bytes.push(0);
    bytes
}

/// An interface, as its description has it.
pub(crate) struct Interface {
    pub(crate) name: String,
    types: BTreeMap<String, Type>,
    /// What a method takes and returns.
    pub(crate) methods: BTreeMap<String, (Type, Type)>,
    pub(crate) errors: BTreeMap<String, Type>,
}

#[derive(Debug)]
pub(crate) enum Type {
    Bool,
    Int,
    Float,
    Text,
    Object,
    Named(String),
    Struct(Vec<(String, Type)>),
    Enum(Vec<String>),
    Array(Box<Type>),
    Map(Box<Type>),
    Maybe(Box<Type>),
}

impl Interface {
    /// Reads a description, which must be right from its first word to its last: <https://varlink.org/Interface-Definition>.
    pub(crate) fn read(text: &str) -> Self {
        let mut words = Words(words(text));
        words.must("interface");
        let mut interface = Interface {
            name: words.next(),
            types: BTreeMap::new(),
            methods: BTreeMap::new(),
            errors: BTreeMap::new(),
        };
        while !words.0.is_empty() {
            let (kind, name) = (words.next(), words.next());
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
            let is_new = !interface.types.contains_key(&name)
                && !interface.methods.contains_key(&name)
                && !interface.errors.contains_key(&name);
            assert!(is_new, "{name} comes twice");
            let described = words.element();
            match kind.as_str() {
                "type" => drop(interface.types.insert(name, described)),
                "error" => drop(interface.errors.insert(name, described)),
                "method" => {
                    words.must("->");
                    let returned = words.element();
                    interface.methods.insert(name, (described, returned));
                }
                other => panic!("{other} {name}"),
            }
        }
        interface
    }

    /// Fails unless a reply to this method is one that the description promises. Returns the name of its error.
    #[track_caller]
    pub(crate) fn check(&self, method: &str, reply: &Value) -> Option<String> {
        let nothing = json!({});
        let parameters = reply.get("parameters").unwrap_or(&nothing);
        let known = ["parameters", "error", "continues"];
        let fields = reply.as_object().unwrap().keys();
        fields.for_each(|key| assert!(known.contains(&key.as_str()), "{key} in {reply}"));
        let Some(error) = reply.get("error") else {
            let (_, returned) = &self.methods[method];
            self.fits(returned, parameters, method);
            return None;
        };
        let error = error.as_str().unwrap();
        if let Some(name) = error.strip_prefix(&format!("{}.", self.name)) {
            self.fits(self.errors.get(name).unwrap_or_else(|| panic!("{reply}")), parameters, name);
        } else {
            assert!(error.starts_with("org.varlink.service."), "{reply}");
        }
        Some(error.to_owned())
    }

    #[track_caller]
    fn fits(&self, wanted: &Type, value: &Value, place: &str) {
        let is_right = match wanted {
            Type::Bool => value.is_boolean(),
            Type::Int => value.is_i64() || value.as_u64().is_some_and(|number| i64::try_from(number).is_ok()),
            Type::Float => value.is_number(),
            Type::Text => value.is_string(),
            Type::Object => value.is_object(),
            Type::Enum(names) => value.as_str().is_some_and(|name| names.iter().any(|known| known == name)),
            Type::Named(name) => {
                return self.fits(
                    self.types.get(name).unwrap_or_else(|| panic!("no type {name}")),
                    value,
                    place,
                );
            }
            Type::Maybe(inner) => {
                if !value.is_null() {
                    self.fits(inner, value, place);
                }
                return;
            }
            Type::Array(inner) => {
                let all = value.as_array().unwrap_or_else(|| panic!("{place} is {value}"));
                return all.iter().for_each(|entry| self.fits(inner, entry, place));
            }
            Type::Map(inner) => {
                let all = value.as_object().unwrap_or_else(|| panic!("{place} is {value}"));
                return all.values().for_each(|entry| self.fits(inner, entry, place));
            }
            Type::Struct(fields) => {
                let given = value.as_object().unwrap_or_else(|| panic!("{place} is {value}"));
                for (name, wanted) in fields {
                    self.fits(wanted, given.get(name).unwrap_or(&Value::Null), &format!("{place}.{name}"));
                }
                let unknown = given.keys().find(|key| !fields.iter().any(|(name, _)| name == *key));
                assert_eq!(unknown, None, "{place} has what its description has not");
                return;
            }
        };
        assert!(is_right, "{place} is {value}, and should be {wanted:?}");
    }
}

/// What is no whitespace and no comment, in words and signs.
fn words(text: &str) -> std::collections::VecDeque<String> {
    let mut words = std::collections::VecDeque::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap();
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            let length = match first {
                c if c.is_ascii_alphabetic() => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
                '-' => 2,
                '[' => rest.find(']').unwrap() + 1,
                _ => 1,
            };
            words.push_back(rest[..length].to_owned());
            rest = rest[length..].trim_start();
        }
    }
    words
}

struct Words(std::collections::VecDeque<String>);

impl Words {
    fn next(&mut self) -> String {
        self.0.pop_front().expect("more of the description")
    }

    fn must(&mut self, word: &str) {
        assert_eq!(self.next(), word);
    }

    fn element(&mut self) -> Type {
        match self.next().as_str() {
            "?" => Type::Maybe(Box::new(self.element())),
            "[]" => Type::Array(Box::new(self.element())),
            "[string]" => Type::Map(Box::new(self.element())),
            "bool" => Type::Bool,
            "int" => Type::Int,
            "float" => Type::Float,
            "string" => Type::Text,
            "object" => Type::Object,
            "(" => self.fields(),
            name => Type::Named(name.to_owned()),
        }
    }

    fn fields(&mut self) -> Type {
        let (mut fields, mut names) = (Vec::new(), Vec::new());
        let mut name = self.next();
        while name != ")" {
            let is_right = name.starts_with(|c: char| c.is_ascii_alphabetic())
                && !name.contains("__")
                && !name.ends_with('_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            assert!(is_right, "{name}");
            match self.next().as_str() {
                ":" => {
                    let described = self.element();
                    fields.push((name, described));
                    name = self.next();
                }
                next => {
                    names.push(name);
                    name = next.to_owned();
                }
            }
            match name.as_str() {
                "," => {
                    name = self.next();
                    assert_ne!(name, ")");
                }
                other => assert_eq!(other, ")"),
            }
        }
        assert!(fields.is_empty() || names.is_empty(), "{names:?}");
        if names.is_empty() { Type::Struct(fields) } else { Type::Enum(names) }
    }
}
