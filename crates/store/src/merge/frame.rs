//! What surrounds the lines of a text: byte-order mark, line endings, the newline at the end. Each
//! is merged by itself, so that it never makes lines differ.

use std::borrow::Cow;

const MARK: char = '\u{feff}';

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Lf,
    CrLf,
    /// Both, or carriage returns elsewhere: part of the lines.
    Mixed,
}

#[derive(Debug)]
struct Frame<'a> {
    mark: bool,
    ending: Option<Ending>,
    /// Whether the last line has its newline; `None` without any line.
    ended: Option<bool>,
    text: Cow<'a, str>,
}

impl<'a> Frame<'a> {
    fn new(text: &'a str) -> Self {
        let unmarked = text.strip_prefix(MARK);
        let mark = unmarked.is_some();
        let text = unmarked.unwrap_or(text);
        let (feeds, returns) = (text.matches('\n').count(), text.matches('\r').count());
        let pairs = text.matches("\r\n").count();
        let ending = match (feeds, returns) {
            (0, 0) => None,
            (_, 0) => Some(Ending::Lf),
            _ if feeds == returns && pairs == feeds => Some(Ending::CrLf),
            _ => Some(Ending::Mixed),
        };
        let ended = (!text.is_empty()).then(|| text.ends_with('\n'));
        Self {
            mark,
            ending,
            ended,
            text: Cow::Borrowed(text),
        }
    }

    fn settle(&mut self, endings: Endings) {
        if endings == Endings::Aside && self.ending == Some(Ending::CrLf) {
            self.text = Cow::Owned(self.text.replace("\r\n", "\n"));
        }
        if self.ended == Some(false) {
            let newline = match self.ending {
                Some(Ending::CrLf) if endings == Endings::Kept => "\r\n",
                _ => "\n",
            };
            self.text.to_mut().push_str(newline);
        }
    }
}

/// What is done with line endings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endings {
    /// They are taken out of the lines.
    Aside,
    /// They stay in the lines, because one of the texts has several kinds.
    Kept,
}

/// The three texts of a merge without what surrounds their lines.
#[derive(Debug)]
pub(super) struct Framed<'a> {
    base: Frame<'a>,
    ours: Frame<'a>,
    theirs: Frame<'a>,
    endings: Endings,
}

impl<'a> Framed<'a> {
    pub(super) fn new(base: &'a str, ours: &'a str, theirs: &'a str) -> Self {
        let [mut base, mut ours, mut theirs] = [base, ours, theirs].map(Frame::new);
        let mixed = [&base, &ours, &theirs]
            .iter()
            .any(|frame| frame.ending == Some(Ending::Mixed));
        let endings = if mixed { Endings::Kept } else { Endings::Aside };
        for frame in [&mut base, &mut ours, &mut theirs] {
            frame.settle(endings);
        }
        Self {
            base,
            ours,
            theirs,
            endings,
        }
    }

    /// Base, ours and theirs; each line of them ends in a newline.
    pub(super) fn texts(&self) -> (&str, &str, &str) {
        (&self.base.text, &self.ours.text, &self.theirs.text)
    }

    /// Puts around the merged text what the three-way merge of the surroundings says.
    pub(super) fn finish(&self, mut text: String) -> String {
        let Self {
            base,
            ours,
            theirs,
            endings,
        } = self;
        if three_way(base.ended, ours.ended, theirs.ended) == Some(false) && text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        let ending = three_way(base.ending, ours.ending, theirs.ending);
        if *endings == Endings::Aside && ending == Some(Ending::CrLf) {
            text = text.replace('\n', "\r\n");
        }
        if three_way(Some(base.mark), Some(ours.mark), Some(theirs.mark)) == Some(true) {
            text.insert(0, MARK);
        }
        text
    }
}

/// What one side changed, or else ours; a text that does not say takes no part.
fn three_way<T: Copy + PartialEq>(
    base: Option<T>,
    ours: Option<T>,
    theirs: Option<T>,
) -> Option<T> {
    match (ours, theirs) {
        (None, said) | (said, None) => said.or(base),
        _ if ours == base => theirs,
        _ => ours,
    }
}
