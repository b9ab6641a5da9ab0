//! Read buffers, lent while bytes are in flight: an idle session owns none.
//!
//! A buffer is initialised once and reused, so that reading needs no `unsafe`. Small ones are for
//! queries, larger ones for results and bulk data, where fewer and longer reads save the system
//! calls that cost more than everything else (wire.md H1); tiny ones keep a query while it waits in
//! the queue, of which there may be thousands.

use parking_lot::Mutex;
use std::cell::Cell;
use std::sync::Arc;

/// Sizes in bytes. The middle one is also the largest message that is ever held whole.
const SIZES: [usize; 4] = [1 << 10, 16 << 10, 64 << 10, 256 << 10];

/// Free buffers kept of each size; more are given back to the allocator.
const KEPT: [usize; 4] = [1024, 64, 16, 8];

/// How large a buffer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// 1 KiB
    Tiny = 0,
    /// 16 KiB
    Small = 1,
    /// 64 KiB
    Middle = 2,
    /// 256 KiB
    Large = 3,
}

impl Size {
    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        SIZES[self as usize]
    }
}

/// A lent buffer: the bytes before `end` are filled.
#[derive(Debug)]
pub struct Buf {
    pub(super) data: Box<[u8]>,
    pub(super) end: usize,
    size: Size,
}

impl Buf {
    /// What size it is.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }
}

thread_local! {
    /// A small buffer that this thread has given back, for the next that it borrows: a query borrows two, one
    /// after the other, and would lock the shelves four times. It decides nothing and belongs to nobody.
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Free buffers of one size.
type Shelf = Vec<Box<[u8]>>;

/// The process's free buffers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Buffers {
    free: Arc<Mutex<[Shelf; 4]>>,
}

impl Buffers {
    /// Lends an empty buffer.
    #[must_use]
    pub fn lend(&self, size: Size) -> Buf {
        let spare = if size == Size::Small { SPARE.try_with(Cell::take).ok().flatten() } else { None };
        let free = spare.or_else(|| self.free.lock()[size as usize].pop());
        let data = free.unwrap_or_else(|| vec![0; size.bytes()].into_boxed_slice());
        Buf { data, end: 0, size }
    }

    /// Takes a buffer back. What it held is overwritten by the next read before anybody sees it:
    /// nothing beyond `end` is ever looked at.
    pub fn take_back(&self, buf: Buf) {
        let Buf { data, size, .. } = buf;
        let more = if size == Size::Small { keep(data) } else { Some(data) };
        let Some(data) = more else { return };
        let mut free = self.free.lock();
        let shelf = &mut free[size as usize];
        if shelf.len() < KEPT[size as usize] {
            shelf.push(data);
        }
    }
}

/// Keeps a buffer as this thread's spare one. Returns the one that was, if any.
fn keep(data: Box<[u8]>) -> Option<Box<[u8]>> {
    SPARE.try_with(|spare| spare.replace(Some(data))).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_the_shelf_is_bounded() {
        let buffers = Buffers::default();
        let lent: Vec<Buf> = (0..KEPT[1] + 5).map(|_| buffers.lend(Size::Small)).collect();
        for buf in lent {
            buffers.take_back(buf);
        }
        assert_eq!(buffers.free.lock()[1].len(), KEPT[1]);
        // The spare one besides.
        let lent: Vec<Buf> = (0..=KEPT[1]).map(|_| buffers.lend(Size::Small)).collect();
        assert_eq!(buffers.free.lock()[1].len(), 0);
        drop(lent);
        assert_eq!(buffers.lend(Size::Middle).data.len(), 64 << 10);
    }
}
