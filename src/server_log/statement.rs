//! Texts of statements into groups: two that differ only in values, comments and space are one.

/// Writes a statement with `?` for each value, one space for each gap and no comments; a list of values is `?, …`.
pub fn normalised(statement: &str) -> String {
    let mut text = String::with_capacity(statement.len());
    let mut rest = statement;
    while let Some(first) = rest.chars().next() {
        let next = token(rest, first, text.chars().last());
        let (piece, after) = rest.split_at(next.bytes);
        match next.kind {
            TokenKind::Gap => {
                if !text.is_empty() && !text.ends_with(' ') {
                    text.push(' ');
                }
            }
            TokenKind::Value => text.push('?'),
            TokenKind::Text => text.push_str(piece),
        }
        rest = after;
    }
    let text = text.trim_end_matches([' ', ';']);
    shortened(text)
}

enum TokenKind {
    Gap,
    Value,
    Text,
}

struct Token {
    kind: TokenKind,
    bytes: usize,
}

/// The next token of `rest`, which begins with `first`; `before` is what was written last.
fn token(rest: &str, first: char, before: Option<char>) -> Token {
    let of = |kind, bytes| Token { kind, bytes };
    let after_word = before.is_some_and(|before| before.is_alphanumeric() || before == '_' || before == '$');
    let length = |keep: fn(char) -> bool| rest.find(|one| !keep(one)).unwrap_or(rest.len());
    if first.is_whitespace() {
        return of(TokenKind::Gap, length(char::is_whitespace));
    }
    if rest.starts_with("--") {
        return of(TokenKind::Gap, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return of(TokenKind::Gap, comment(rest));
    }
    match first {
        '\'' => of(TokenKind::Value, quoted(rest, '\'', false)),
        '"' => of(TokenKind::Text, quoted(rest, '"', false)),
        'e' | 'E' if !after_word && rest[1..].starts_with('\'') => {
            of(TokenKind::Value, 1 + quoted(&rest[1..], '\'', true))
        }
        'b' | 'B' | 'x' | 'X' | 'n' | 'N' if !after_word && rest[1..].starts_with('\'') => {
            of(TokenKind::Value, 1 + quoted(&rest[1..], '\'', false))
        }
        '$' if !after_word => {
            // A parameter is a value as well.
            let digits = rest[1..].bytes().take_while(u8::is_ascii_digit).count();
            let parameter = (digits > 0).then_some(1 + digits);
            dollar_quoted(rest).or(parameter).map_or(of(TokenKind::Text, 1), |bytes| of(TokenKind::Value, bytes))
        }
        _ if first.is_ascii_digit() && !after_word => {
            of(TokenKind::Value, length(|one| one.is_ascii_alphanumeric() || one == '.' || one == '_'))
        }
        _ if first.is_alphanumeric() || first == '_' => {
            of(TokenKind::Text, length(|one| one.is_alphanumeric() || one == '_' || one == '$'))
        }
        _ => of(TokenKind::Text, first.len_utf8()),
    }
}

/// The bytes of a comment, which may hold comments.
fn comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The bytes of a quoted text, in which the mark twice is the mark.
fn quoted(text: &str, mark: char, backslashes: bool) -> usize {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, one)) = characters.next() {
        if backslashes && one == '\\' {
            characters.next();
        } else if one == mark {
            if characters.peek().is_some_and(|(_, next)| *next == mark) {
                characters.next();
            } else {
                return at + mark.len_utf8();
            }
        }
    }
    text.len()
}

/// The bytes of `$tag$ … $tag$`; `None` if it is none.
fn dollar_quoted(text: &str) -> Option<usize> {
    let end = 1 + text[1..].find('$')?;
    let tag = &text[..=end];
    let name = &text[1..end];
    let is_name = name.chars().all(|one| one.is_alphanumeric() || one == '_')
        && !name.starts_with(|first: char| first.is_ascii_digit());
    is_name.then(|| text[tag.len()..].find(tag).map_or(text.len(), |found| found + 2 * tag.len()))
}

/// Lists of values as one: `(?, ?, ?)` and `(?, ?), (?, ?)`.
fn shortened(text: &str) -> String {
    let mut text = text.to_owned();
    for (long, short) in [
        ("?, ?", "?, …"),
        ("?,?", "?, …"),
        ("?, …, ?", "?, …"),
        ("?, …,?", "?, …"),
        ("(?, …), (?, …)", "(?, …)"),
        ("(?, …),(?, …)", "(?, …)"),
    ] {
        while let Some(found) = text.find(long) {
            text.replace_range(found..found + long.len(), short);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_comments_and_space_make_no_difference() {
        for (one, other) in [
            ("SELECT * FROM t WHERE a = 1", "SELECT  *\n FROM t -- all\n WHERE a = 42;"),
            ("SELECT 'a''b', E'it\\'s', $$x$$, $t$ $$ $t$, 1.5e3", "SELECT 'c', E'', $$$$, $t$$t$, 2"),
            ("SELECT * FROM t WHERE a IN (1, 2, 3)", "SELECT * FROM t WHERE a IN (7,8)"),
            ("INSERT INTO t VALUES (1, 'a'), (2, 'b')", "INSERT INTO t VALUES (1, 'a')"),
            ("SELECT a1, b$2 FROM t2 WHERE x = $1 /* one /* two */ */", "SELECT a1, b$2 FROM t2 WHERE x = 9"),
        ] {
            assert_eq!(normalised(one), normalised(other));
        }
        assert_eq!(normalised("SELECT a1 FROM t2 WHERE \"x 1\" = 1"), "SELECT a1 FROM t2 WHERE \"x 1\" = ?");
        assert_eq!(normalised("SELECT * FROM t WHERE a IN (1, 2, 3)"), "SELECT * FROM t WHERE a IN (?, …)");
        assert_ne!(normalised("SELECT a FROM t"), normalised("SELECT b FROM t"));
    }

    proptest! {
        #[test]
        fn any_text_has_a_form_and_it_is_short(text in "(?s)[a-z0-9'\"$*/\\-, ()é\\n;E]{0,200}") {
            let once = normalised(&text);
            prop_assert!(once.len() <= text.len() + 2 * text.matches(',').count() + 1);
        }
    }
}
