//! The descriptors of Weft's own API, by file and by symbol.

use std::collections::HashMap;

use prost_reflect::{DescriptorError, DescriptorPool, FileDescriptor};

/// Encoded files.
pub(super) struct Descriptors {
    services: Vec<String>,
    files: HashMap<String, Vec<u8>>,
    /// Symbol to file name.
    symbols: HashMap<String, String>,
}

impl Descriptors {
    /// Of all that the client port serves itself.
    pub(super) fn own() -> Result<Descriptors, DescriptorError> {
        let mut pool = DescriptorPool::new();
        for set in [
            weft_proto::v1::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            pool.decode_file_descriptor_set(set)?;
        }
        let mut symbols = HashMap::new();
        let mut note = |symbol: &str, file: FileDescriptor| drop(symbols.insert(symbol.into(), file.name().into()));
        for service in pool.services() {
            note(service.full_name(), service.parent_file());
            service.methods().for_each(|method| note(method.full_name(), service.parent_file()));
        }
        for message in pool.all_messages() {
            note(message.full_name(), message.parent_file());
            message.fields().for_each(|field| note(field.full_name(), message.parent_file()));
        }
        pool.all_enums().for_each(|it| note(it.full_name(), it.parent_file()));
        let services = pool.services().map(|service| service.full_name().to_owned()).collect();
        let files = pool.files().map(|file| (file.name().to_owned(), file.encode_to_vec())).collect();
        Ok(Descriptors { services, files, symbols })
    }

    /// Full names of the services.
    pub(super) fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(String::as_str)
    }

    pub(super) fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    pub(super) fn file_of(&self, symbol: &str) -> Option<&[u8]> {
        self.file(self.symbols.get(symbol)?)
    }
}
