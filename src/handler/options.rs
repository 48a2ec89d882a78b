//! A handler's own section of the configuration, in its own types.

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

/// The options of a handler that has none: a key in `[service.NAME.options]` is an error.
///
/// ```
/// # use preforkd::{Connection, Handler, NoOptions};
/// struct Silent;
///
/// impl Handler for Silent {
///     type Options = NoOptions;
///
///     fn serve(&self, _: &mut Connection) -> std::io::Result<()> {
///         Ok(())
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct NoOptions {}

/// The keys that a type reads from a table, as serde's derive tells them; `None` if it takes any.
pub(super) fn known<T: DeserializeOwned>() -> Option<&'static [&'static str]> {
    let mut known = None;
    // It always ends with an error.
    let _ = T::deserialize(Probe(&mut known));
    known
}

/// Reads a table; `ignored` is called with the path of each key that nobody has read.
pub(super) fn read<T: DeserializeOwned>(
    table: Spanned<DeValue<'_>>,
    ignored: &mut dyn FnMut(Vec<String>),
) -> Result<T, toml::de::Error> {
    serde_ignored::deserialize(ValueDeserializer::from(table), |path| ignored(keys(&path)))
}

fn keys(path: &serde_ignored::Path<'_>) -> Vec<String> {
    use serde_ignored::Path;
    let (parent, key) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, index.to_string()),
        Path::Map { parent, key } => (parent, key.clone()),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            return keys(parent);
        }
    };
    let mut keys = keys(parent);
    keys.push(key);
    keys
}

/// Hears which fields a struct has, and has nothing for them.
struct Probe<'a>(&'a mut Option<&'static [&'static str]>);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("there is nothing here"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = Some(fields);
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "read by serde alone")]
    struct Inner {
        depth: u8,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "read by serde alone")]
    struct Outer {
        name: String,
        #[serde(alias = "within")]
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "read by serde alone")]
    struct Wrapped(Outer);

    #[test]
    fn the_keys_of_a_type_are_known() {
        assert_eq!(known::<NoOptions>(), Some(&[][..]));
        assert_eq!(known::<Outer>(), Some(&["name", "inner", "within"][..]));
        assert_eq!(known::<Wrapped>(), known::<Outer>());
        assert_eq!(known::<BTreeMap<String, u8>>(), None);
    }

    #[test]
    fn what_nobody_reads_is_named() {
        let text = r#"{ name = "x", inner = [{ depth = 1 }, { depth = 2, width = 3 }], more = 4 }"#;
        let mut ignored = Vec::new();
        let table = DeValue::parse(text).unwrap();
        read::<Outer>(table, &mut |path| ignored.push(path.join("."))).unwrap();
        assert_eq!(ignored, ["inner.1.width", "more"]);
    }
}
