//! Model files put together byte by byte, so that tests can break any rule. Independent of the crate's writers.
#![allow(dead_code)]

/// A GGUF file in the making.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    /// Written instead of the true counts if set.
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    pub alignment: usize,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    pub data: Vec<u8>,
}

pub fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

impl Gguf {
    pub fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            alignment: 32,
            keys: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
        }
    }
    /// A key with a value type id and the value's raw bytes.
    pub fn key(mut self, key: &str, type_id: u32, value: &[u8]) -> Self {
        let mut bytes = string(key.as_bytes());
        bytes.extend(type_id.to_le_bytes());
        bytes.extend(value);
        self.keys.push(bytes);
        self
    }
    /// A raw metadata entry.
    pub fn raw_key(mut self, bytes: &[u8]) -> Self {
        self.keys.push(bytes.to_vec());
        self
    }
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.key(key, 4, &value.to_le_bytes())
    }
    pub fn u16(self, key: &str, value: u16) -> Self {
        self.key(key, 2, &value.to_le_bytes())
    }
    /// A directory entry; `dims` innermost first, as in the file.
    pub fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        let mut bytes = string(name.as_bytes());
        bytes.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(type_id.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }
    pub fn data(mut self, count: usize) -> Self {
        self.data = (0..count).map(|i| i as u8).collect();
        self
    }
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        self.keys.iter().chain(&self.tensors).for_each(|entry| bytes.extend(entry));
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }
}

/// A safetensors file of this header and so many bytes of data.
pub fn safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data_bytes).map(|i| i as u8));
    bytes
}

/// A small valid GGUF file that uses most of the format.
pub fn small_gguf() -> Vec<u8> {
    let mut strings = 8_u32.to_le_bytes().to_vec();
    strings.extend(2_u64.to_le_bytes());
    strings.extend(string(b"a"));
    strings.extend(string("é".as_bytes()));
    let mut nested = 9_u32.to_le_bytes().to_vec();
    nested.extend(1_u64.to_le_bytes());
    nested.extend(5_u32.to_le_bytes());
    nested.extend(2_u64.to_le_bytes());
    nested.extend([1, 0, 0, 0, 2, 0, 0, 0]);
    Gguf::new()
        .key("general.architecture", 8, &string(b"llama"))
        .u32("n", 7)
        .key("b", 7, &[1])
        .key("f", 6, &0.5_f32.to_le_bytes())
        .key("s", 9, &strings)
        .key("nested", 9, &nested)
        .tensor("f32", &[3, 2], 0, 0)
        .tensor("q8", &[32, 1], 8, 32)
        .data(96)
        .build()
}

/// A small valid safetensors file.
pub fn small_safetensors() -> Vec<u8> {
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[2,10]},"#,
        r#""b":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},"i":{"dtype":"I64","shape":[],"data_offsets":[10,18]}}"#
    );
    safetensors(header, 18)
}
