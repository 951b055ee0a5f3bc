//! Memory for packed weights.

use super::lanes::Line;

/// Pages of 2 MiB spare the page walks that a stream over gigabytes would otherwise wait for.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Lines in one piece, in huge pages where the system grants them.
pub(crate) struct Arena {
    /// With room to begin at a multiple of `align`.
    memory: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Arena {
    /// `len` lines of zeros that take no memory before they are written.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = len * size_of::<Line>();
        // Small ones would waste more on the alignment than they gain.
        let align = if bytes >= 2 * HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { align_of::<Line>() };
        // As bytes, so that a large allocation is fresh zero pages from the system; with the alignment of a line the
        // standard library would write the zeros itself, on one thread.
        let mut memory = vec![0; bytes + align].into_boxed_slice();
        let start = memory.as_ptr().addr().wrapping_neg() % align;
        advise_huge_pages(&mut memory[start..start + bytes]);
        Self { memory, start, len }
    }

    pub(crate) fn lines(&self) -> &[Line] {
        bytemuck::cast_slice(&self.memory[self.start..][..self.len * size_of::<Line>()])
    }

    pub(crate) fn lines_mut(&mut self) -> &mut [Line] {
        bytemuck::cast_slice_mut(&mut self.memory[self.start..][..self.len * size_of::<Line>()])
    }
}

/// `memory` begins at a multiple of the huge page size if it is large; what is left at its end stays in small pages.
#[cfg(target_os = "linux")]
fn advise_huge_pages(memory: &mut [u8]) {
    let len = memory.len() / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if memory.as_ptr().addr().is_multiple_of(HUGE_PAGE_BYTES) && len > 0 {
        // SAFETY: whole pages inside one allocation of ours. Only advice: contents and validity do not change, and a
        // refusal costs nothing but speed.
        unsafe { libc::madvise(memory.as_mut_ptr().cast(), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: &mut [u8]) {}
