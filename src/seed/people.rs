//! People: names in several locales, and the addresses that come from them.

use deunicode::deunicode;
use fake::Fake;
use fake::faker::name::raw::{FirstName, LastName};
use fake::locales::{AR_SA, DE_DE, Data, EN, FR_FR, IT_IT, JA_JP, NL_NL, PT_BR, TR_TR, ZH_CN};

use super::random::RowRandom;

/// Whose names a person may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Locale {
    En,
    FrFr,
    DeDe,
    ItIt,
    PtBr,
    NlNl,
    TrTr,
    JaJp,
    ZhCn,
    ArSa,
}

impl Locale {
    /// Each locale and its key in a data set.
    pub(super) const ALL: [(&str, Locale); 10] = [
        ("en", Self::En),
        ("fr_fr", Self::FrFr),
        ("de_de", Self::DeDe),
        ("it_it", Self::ItIt),
        ("pt_br", Self::PtBr),
        ("nl_nl", Self::NlNl),
        ("tr_tr", Self::TrTr),
        ("ja_jp", Self::JaJp),
        ("zh_cn", Self::ZhCn),
        ("ar_sa", Self::ArSa),
    ];
}

/// A person's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    locale: Locale,
    /// The given name, in the locale's script.
    pub(super) first: &'static str,
    /// The family name, in the locale's script.
    pub(super) last: &'static str,
}

impl Name {
    /// Draws the name of a person from one of the weighted `locales`.
    pub(super) fn draw(random: &mut RowRandom, locales: &[(Locale, u64)]) -> Self {
        let locale = random.weighted(locales);
        let (first, last) = match locale {
            Locale::En => draw_from(EN, random),
            Locale::FrFr => draw_from(FR_FR, random),
            Locale::DeDe => draw_from(DE_DE, random),
            Locale::ItIt => draw_from(IT_IT, random),
            Locale::PtBr => draw_from(PT_BR, random),
            Locale::NlNl => draw_from(NL_NL, random),
            Locale::TrTr => draw_from(TR_TR, random),
            Locale::JaJp => draw_from(JA_JP, random),
            Locale::ZhCn => draw_from(ZH_CN, random),
            Locale::ArSa => draw_from(AR_SA, random),
        };
        Self { locale, first, last }
    }

    /// The whole name in the order that its locale writes it.
    pub(super) fn full(&self) -> String {
        match self.locale {
            Locale::JaJp => format!("{} {}", self.last, self.first),
            Locale::ZhCn => format!("{}{}", self.last, self.first),
            _ => format!("{} {}", self.first, self.last),
        }
    }

    /// The address `first.last<number>` at one of the domains that are reserved for examples.
    ///
    /// Only the number holds digits and it stands at the end, so different numbers give different addresses.
    pub(super) fn email(&self, number: u64, random: &mut RowRandom) -> String {
        let domain = random.pick(&["example.com", "example.org", "example.net"]);
        format!("{}.{}{number}@{domain}", letters(self.first), letters(self.last))
    }
}

/// Draws a given and a family name of one locale.
fn draw_from<L: Data + Copy>(locale: L, random: &mut RowRandom) -> (&'static str, &'static str) {
    (FirstName(locale).fake_with_rng(random), LastName(locale).fake_with_rng(random))
}

/// Writes `name` in the letters a to z.
fn letters(name: &str) -> String {
    let letters: String =
        deunicode(name).chars().filter(char::is_ascii_alphabetic).map(|letter| letter.to_ascii_lowercase()).collect();
    if letters.is_empty() { "user".to_owned() } else { letters }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::random::Key;

    #[test]
    fn every_locale_gives_names_and_plain_addresses() {
        for (key, locale) in Locale::ALL {
            for index in 0..200 {
                let mut random = Key::new(1, key, 0).row(index);
                let name = Name::draw(&mut random, &[(locale, 1)]);
                let email = name.email(index, &mut random);
                assert!(!name.full().trim().is_empty(), "{key}");
                let (local, domain) = email.split_once('@').unwrap();
                assert!(domain.starts_with("example."), "{email}");
                assert!(local.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.'));
            }
        }
    }

    #[test]
    fn names_are_transliterated() {
        assert_eq!(letters("Müller"), "muller");
        assert_eq!(letters("O'Connell"), "oconnell");
        assert_eq!(letters("さくら"), "sakura");
        assert_eq!(letters("…"), "user");
    }
}
