//! The data section of a file being written: declared tensors, in declared order, each exactly as long as declared.

use crate::{
    FormatError,
    fault::{Fault, Name, malformed},
    output::Output,
};

/// Header first, then the tensors' bytes, padded to the alignment.
pub(crate) struct Payload {
    output: Output,
    tensors: Vec<(String, u64)>,
    /// Tensor being written.
    current: usize,
    /// Bytes of it still to come.
    left: u64,
    alignment: u64,
}

impl Payload {
    /// Writes `header` (already padded) and waits for the first of `tensors` (name, bytes).
    pub(crate) fn start(
        mut output: Output,
        header: &[u8],
        tensors: Vec<(String, u64)>,
        alignment: u64,
    ) -> Result<Self, FormatError> {
        output.write(header)?;
        let left = tensors.first().map_or(0, |tensor| tensor.1);
        let mut payload = Self { output, tensors, current: 0, left, alignment };
        payload.advance()?;
        Ok(payload)
    }

    /// Appends bytes of the current tensor.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let fits = self.left.checked_sub(bytes.len() as u64);
        let Some(left) = fits else {
            let fault: Result<(), Fault> = match self.tensors.get(self.current) {
                Some((name, _)) => {
                    malformed!("tensor {}: {} bytes written, {} expected", Name(name), bytes.len(), self.left)
                }
                None => malformed!("{} bytes written after the last tensor", bytes.len()),
            };
            return fault.map_err(|fault| fault.at(self.output.target()));
        };
        self.output.write(bytes)?;
        self.left = left;
        self.advance()
    }

    /// Pads and steps over complete tensors.
    fn advance(&mut self) -> Result<(), FormatError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.left == 0
            && let Some((_, size)) = self.tensors.get(self.current)
        {
            let mut padding = size.next_multiple_of(self.alignment) - size;
            while padding > 0 {
                let step = padding.min(ZEROS.len() as u64);
                self.output.write(&ZEROS[..step as usize])?;
                padding -= step;
            }
            self.current += 1;
            self.left = self.tensors.get(self.current).map_or(0, |tensor| tensor.1);
        }
        Ok(())
    }

    /// Puts the file in place; returns its size. Errors if a tensor is incomplete.
    pub(crate) fn finish(self) -> Result<u64, FormatError> {
        if let Some((name, size)) = self.tensors.get(self.current) {
            let what = format!("tensor {}: {} of {size} bytes are missing", Name(name), self.left);
            return Err(FormatError::Malformed { path: self.output.target().into(), what });
        }
        self.output.finish()
    }
}
