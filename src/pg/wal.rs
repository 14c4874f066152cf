//! Reading the write-ahead log of PostgreSQL 15 (`xlogrecord.h`, `xlog_internal.h`, `xlogreader.c`), for one question: what
//! does a stretch of it say of a database?
//!
//! What must hold: the answer "nothing", or "nothing but pages of these files", is given only if every record between the
//! two positions was read whole, with the right checksum and a link to the one before it. Everything else is an error, and
//! the caller takes it for "anything".
//!
//! Why that answers it: a change to what a database keeps is in the log before it is anywhere else. A record names the
//! pages that it changes, each with the number of their database; a record that names no page (a commit, a new or cut file,
//! a new relation map, an invalidation) has the number in its contents if it has to do with a database, so that any four
//! bytes which look like the number count. Not in the log are temporary and unlogged tables, of which only the contents are
//! missing and never the entries in the catalogs, and files made under `wal_level = minimal`, whose making is logged.

use std::collections::BTreeMap;

use super::control::CRC_32C;

/// Bytes of a page of the log (`XLOG_BLCKSZ`), as PostgreSQL is built everywhere.
pub(crate) const PAGE: u64 = 8192;

/// Bytes of a page's header, and of the header of the first page of a segment.
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// `XLOG_PAGE_MAGIC` of PostgreSQL 15.
const PAGE_MAGIC: u16 = 0xD110;

/// Bytes of a record's header, of which the last four are its checksum.
const RECORD_HEADER: usize = 24;

/// A position in the log.
pub(crate) type Position = u64;

/// Bytes of the log from the beginning of the page that `from` is on, up to `until`; both are where a record begins.
#[derive(Debug)]
pub(crate) struct Stretch<'a> {
    pub(crate) from: Position,
    pub(crate) until: Position,
    /// Bytes of a segment, which is a file.
    pub(crate) segment_size: u64,
    pub(crate) bytes: &'a [u8],
}

/// What a stretch says of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mention {
    /// The relations' files of which pages are named, each with the number of the last page of its contents that is.
    pub(crate) files: BTreeMap<File, u32>,
    /// Whether anything else may be about it: a file that was made or cut, entries in the catalogs that became invalid.
    pub(crate) more: bool,
}

impl Mention {
    /// Whether the stretch does not speak of the database at all.
    pub(crate) fn is_none(&self) -> bool {
        self.files.is_empty() && !self.more
    }
}

/// A relation's file in a database: its contents, with what belongs to them (free space, visibility).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct File {
    pub(crate) tablespace: u32,
    /// `pg_class.relfilenode`, or what `pg_relation_filenode` says.
    pub(crate) number: u32,
}

/// Why a stretch could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("the write-ahead log is not whole at {position:X}: {what}")]
pub(crate) struct NotWhole {
    position: Position,
    what: &'static str,
}

/// Reads a position as the server writes it: `16/B374D848`.
pub(crate) fn position(text: &str) -> Option<Position> {
    let (high, low) = text.split_once('/')?;
    let part = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
    Some(part(high)? << 32 | part(low)?)
}

/// The name of the segment's file with `position` on this time line.
pub(crate) fn file_name(timeline: u32, position: Position, segment_size: u64) -> String {
    let (number, each) = (position / segment_size, 0x1_0000_0000 / segment_size);
    format!("{timeline:08X}{:08X}{:08X}", number / each, number % each)
}

impl Stretch<'_> {
    /// What is said of each of the databases from the position on that is with it.
    pub(crate) fn mentions(&self, databases: &[(u32, Position)]) -> Result<Vec<Mention>, NotWhole> {
        let contents = self.without_page_headers()?;
        let mut found = vec![Mention::default(); databases.len()];
        let (mut offset, mut position, mut before) = (0, self.from, None);
        while position < self.until {
            let wrong = |what| NotWhole { position, what };
            let rest = &contents[offset..];
            let length = read_u32(rest, 0).ok_or_else(|| wrong("a record's header is cut"))? as usize;
            let record = rest.get(..length).filter(|_| length >= RECORD_HEADER);
            let record = record.ok_or_else(|| wrong("a record's length is wrong"))?;
            check(record, before).map_err(wrong)?;
            let subject = Subject::of(record).ok_or_else(|| wrong("a record's parts do not fit"))?;
            for (&(database, from), mention) in databases.iter().zip(&mut found) {
                if position >= from {
                    subject.add_to(mention, database);
                }
            }
            before = Some(position);
            // The next one begins at a multiple of eight.
            let step = length.next_multiple_of(8);
            offset += step;
            position = self.advance(position, step as u64);
        }
        if position == self.until {
            return Ok(found);
        }
        Err(NotWhole { position, what: "the last record goes on" })
    }

    /// The contents of the pages from `from` on, after a look at each page's header.
    fn without_page_headers(&self) -> Result<Vec<u8>, NotWhole> {
        let first = self.from - self.from % PAGE;
        let mut contents = Vec::with_capacity(self.bytes.len());
        let mut page = first;
        for bytes in self.bytes.chunks(usize::try_from(PAGE).expect("a page fits in memory")) {
            let wrong = |what| NotWhole { position: page, what };
            let magic = bytes.first_chunk().map(|two| u16::from_le_bytes(*two));
            let address = bytes.get(8..16).and_then(<[u8]>::first_chunk).map(|eight| u64::from_le_bytes(*eight));
            if magic != Some(PAGE_MAGIC) || address != Some(page) {
                return Err(wrong("a page's header is another one"));
            }
            let skip = if page == first { self.from - first } else { self.header(page) };
            let skip = usize::try_from(skip).expect("less than a page");
            contents.extend_from_slice(bytes.get(skip..).ok_or_else(|| wrong("a page is cut"))?);
            page += PAGE;
        }
        Ok(contents)
    }

    fn header(&self, page: Position) -> u64 {
        if page.is_multiple_of(self.segment_size) { LONG_HEADER } else { SHORT_HEADER }
    }

    /// The position `step` bytes of contents further on; at the end of a page that is behind the next one's header.
    fn advance(&self, position: Position, mut step: u64) -> Position {
        let mut position = position;
        loop {
            let room = PAGE - position % PAGE;
            if step < room {
                return position + step;
            }
            step -= room;
            position += room;
            position += self.header(position);
        }
    }
}

/// Fails unless the record has the checksum that it says, and is the one after `before`.
fn check(record: &[u8], before: Option<Position>) -> Result<(), &'static str> {
    let link = record.get(8..16).and_then(<[u8]>::first_chunk).map(|eight| u64::from_le_bytes(*eight));
    if before.is_some() && link != before {
        return Err("a record does not follow the one before");
    }
    let mut digest = CRC_32C.digest();
    digest.update(&record[RECORD_HEADER..]);
    digest.update(&record[..RECORD_HEADER - 4]);
    match read_u32(record, RECORD_HEADER - 4) {
        Some(sum) if sum == digest.finalize() => Ok(()),
        _ => Err("a record's checksum is wrong"),
    }
}

/// A page that a record names.
#[derive(Clone, Copy)]
struct Page {
    file: File,
    /// 0 stands for the catalogs that all databases share.
    database: u32,
    /// Which of the relation's files it is in: 0 for the contents, others for free space and visibility.
    fork: u8,
    number: u32,
}

/// What a record is about.
enum Subject<'a> {
    Pages(Vec<Page>),
    /// No page, and this is what it says.
    Words(&'a [u8]),
}

impl<'a> Subject<'a> {
    /// Reads the headers of the parts, as `DecodeXLogRecord` does; `None` if they are wrong.
    fn of(record: &'a [u8]) -> Option<Self> {
        let mut left = record.get(RECORD_HEADER..)?;
        let (mut announced, mut pages) = (0_usize, Vec::<Page>::new());
        while left.len() > announced {
            match take::<1>(&mut left)?[0] {
                // Contents, short or long, which come last.
                255 => {
                    announced += usize::from(take::<1>(&mut left)?[0]);
                    break;
                }
                254 => {
                    announced += usize::try_from(u32::from_le_bytes(take(&mut left)?)).ok()?;
                    break;
                }
                253 => drop(take::<2>(&mut left)?),
                252 => drop(take::<4>(&mut left)?),
                0..=32 => {
                    let (length, page) = read_page(&mut left, pages.last())?;
                    announced += length;
                    pages.push(page);
                }
                _ => return None,
            }
        }
        if left.len() != announced {
            return None;
        }
        Some(if pages.is_empty() { Self::Words(left) } else { Self::Pages(pages) })
    }

    /// Adds what it says of the database.
    fn add_to(&self, mention: &mut Mention, database: u32) {
        match self {
            Self::Pages(pages) => {
                for page in pages.iter().filter(|page| page.database == database) {
                    let last = mention.files.entry(page.file).or_default();
                    if page.fork == 0 {
                        *last = page.number.max(*last);
                    }
                }
            }
            Self::Words(words) => mention.more |= words.windows(4).any(|four| four == database.to_le_bytes()),
        }
    }
}

/// Reads what follows the number of a page's part: how many bytes belong to it, and the page, whose file is that of the part
/// before if it says so.
fn read_page(left: &mut &[u8], before: Option<&Page>) -> Option<(usize, Page)> {
    const FORK: u8 = 0x0F;
    const HAS_IMAGE: u8 = 0x10;
    const SAME_RELATION: u8 = 0x80;
    const HAS_HOLE: u8 = 0x01;
    const COMPRESSED: u8 = 0x04 | 0x08 | 0x10;
    let flags = take::<1>(left)?[0];
    let mut length = usize::from(u16::from_le_bytes(take(left)?));
    if flags & HAS_IMAGE != 0 {
        length += usize::from(u16::from_le_bytes(take(left)?));
        take::<2>(left)?;
        let information = take::<1>(left)?[0];
        if information & HAS_HOLE != 0 && information & COMPRESSED != 0 {
            take::<2>(left)?;
        }
    }
    let (file, database) = if flags & SAME_RELATION == 0 {
        let relation: [u8; 12] = take(left)?;
        let file = File { tablespace: read_u32(&relation, 0)?, number: read_u32(&relation, 8)? };
        (file, read_u32(&relation, 4)?)
    } else {
        (before?.file, before?.database)
    };
    let number = u32::from_le_bytes(take(left)?);
    Some((length, Page { file, database, fork: flags & FORK, number }))
}

fn take<const N: usize>(left: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = left.split_first_chunk()?;
    *left = rest;
    Some(*taken)
}

fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|four| u32::from_le_bytes(*four))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_files_are_named_as_the_server_names_them() {
        assert_eq!(position("16/B374D848"), Some(0x16_B374_D848));
        assert_eq!(position("0/0"), Some(0));
        assert_eq!(position("zero"), None);
        assert_eq!(file_name(1, 0x16_B374_D848, 16 << 20), "0000000100000016000000B3");
        assert_eq!(file_name(1, 0x1_0000_0000, 1 << 20), "000000010000000100000000");
    }

    #[test]
    fn a_step_over_the_end_of_a_page_skips_the_next_ones_header() {
        let stretch = Stretch { from: 0, until: 0, segment_size: 16 << 20, bytes: &[] };
        assert_eq!(stretch.advance(8184, 8), 8192 + 24);
        assert_eq!(stretch.advance(8184, 16), 8192 + 32);
        assert_eq!(stretch.advance((16 << 20) - 8, 8), (16 << 20) + 40);
        assert_eq!(stretch.advance(8192 + 24, 8168 + 8), 16384 + 24 + 8);
    }

    /// A record with these parts after its header.
    fn record(parts: &[u8], before: Position) -> Vec<u8> {
        let mut record = vec![0; RECORD_HEADER];
        record.extend_from_slice(parts);
        let length = u32::try_from(record.len()).unwrap();
        record[..4].copy_from_slice(&length.to_le_bytes());
        record[8..16].copy_from_slice(&before.to_le_bytes());
        let mut digest = CRC_32C.digest();
        digest.update(&record[RECORD_HEADER..]);
        digest.update(&record[..20]);
        let sum = digest.finalize().to_le_bytes();
        record[20..24].copy_from_slice(&sum);
        record.resize(record.len().next_multiple_of(8), 0);
        record
    }

    /// A page with these records behind its header.
    fn page(records: &[Vec<u8>]) -> Vec<u8> {
        let mut page = vec![0; 24];
        page[..2].copy_from_slice(&PAGE_MAGIC.to_le_bytes());
        page[8..16].copy_from_slice(&PAGE.to_le_bytes());
        page.extend(records.concat());
        page
    }

    #[test]
    fn pages_are_of_their_database_and_words_of_whatever_they_may_name() {
        let mut block = vec![0, 0, 0, 0];
        for number in [1663_u32, 16_400, 1259, 7] {
            block.extend(number.to_le_bytes());
        }
        // The same file again, a page of its free space, then contents that look like another database.
        block.extend([1, 0x80, 0, 0, 8, 0, 0, 0, 2, 0x81, 0, 0, 9, 0, 0, 0, 255, 4]);
        block.extend(16_500_u32.to_le_bytes());
        let first = record(&block, 0);
        let second = record(&[&[255, 5, 9][..], &16_600_u32.to_le_bytes()].concat(), PAGE + 24);
        let end = PAGE + 24 + (first.len() + second.len()) as u64;
        let bytes = page(&[first.clone(), second]);
        let stretch = |until| Stretch { from: PAGE + 24, until, segment_size: 16 << 20, bytes: &bytes };
        let all = [(16_400, 0), (16_500, 0), (16_600, 0)];
        let file = File { tablespace: 1663, number: 1259 };
        let pages = Mention { files: BTreeMap::from([(file, 8)]), more: false };
        let words = Mention { files: BTreeMap::new(), more: true };
        assert_eq!(stretch(end).mentions(&all).unwrap(), [pages, Mention::default(), words.clone()]);
        let later = [(16_400, PAGE + 25), (16_600, PAGE + 25)];
        assert_eq!(stretch(end).mentions(&later).unwrap(), [Mention::default(), words]);
        stretch(end + 8).mentions(&all).unwrap_err();
        stretch(end - 8).mentions(&all).unwrap_err();
        for damaged in [PAGE + 24 + 30, end - 3] {
            let mut bytes = bytes.clone();
            bytes[usize::try_from(damaged - PAGE).unwrap()] ^= 1;
            Stretch { bytes: &bytes, ..stretch(end) }.mentions(&all).unwrap_err();
        }
    }
}
