//! The password of all generated users, hashed.
//!
//! One argon2id hash costs some 20 ms and 19 MiB, so a hash for each of 100,000 users would take half an hour. The hashes
//! are therefore made beforehand, with a few salts, so that not every row holds the same text. This is a convenience for
//! development data with a public password; it says nothing about how an application should store real ones.

/// The password of every generated user.
pub const DEVELOPMENT_PASSWORD: &str = "taskflow-dev";

/// [`DEVELOPMENT_PASSWORD`] hashed by argon2id with the parameters that OWASP recommends (19 MiB, 2 passes, 1 lane) and
/// eight fixed salts, as PHC strings.
pub(super) const HASHES: [&str; 8] = [
    "$argon2id$v=19$m=19456,t=2,p=1$dGFza2Zsb3cgc2VlZCAwMQ$78+FJJ3OfNRFlp1foXZCKlBrWEQ0dVRpzv0M6VR/PMo",
    "$argon2id$v=19$m=19456,t=2,p=1$dGFza2Zsb3cgc2VlZCAwMg$rxyQTbhSETeCRZgsaQNRt588hjAd4v7mVquyqeLd0Bo",
    "$argon2id$v=19$m=19456,t=2,p=1$dGFza2Zsb3cgc2VlZCAwMw$8b6oEp4x+zY9VF50DhBtJZ5joqsy2HNOiCezQnLao8U",
    "$argon2id$v=19$m=19456,t=2,p=1$dGFza2Zsb3cgc2VlZCAwNA$CmtG7M45+DaLCdhpXvtWA2pJr49P2xLBH+4folXLtWU",
    "$argon2id$v=19$m=19456,t=2,p=1$dGFza2Zsb3cgc2VlZCAwNQ$M/nvL7YAXuR3xQPyPaw69AZ9aMQtYH9bC68NXwzlcvU",
    "$argon2id$v=19$m=19456,t=2,p=1$dGFza2Zsb3cgc2VlZCAwNg$VlZFUwsCoRtEaEgsKKGbCmMexNoM7vc31aWiCgkpjs4",
    "$argon2id$v=19$m=19456,t=2,p=1$dGFza2Zsb3cgc2VlZCAwNw$P08CyjLJjPgBvkPKc5X+3xn7eWZtQG3ayvh4haxhjzg",
    "$argon2id$v=19$m=19456,t=2,p=1$dGFza2Zsb3cgc2VlZCAwOA$4Juv1az9clj4K8DnpZ8ZWJ2iEhUYBBIvKVZqn2hS7ss",
];

#[cfg(test)]
mod tests {
    use argon2::password_hash::phc::PasswordHash;
    use argon2::{Argon2, PasswordVerifier};

    use super::*;

    #[test]
    fn each_hash_is_argon2id_and_verifies_the_documented_password() {
        for text in HASHES {
            let hash = PasswordHash::new(text).unwrap();
            assert_eq!(hash.algorithm.as_str(), "argon2id");
            let verify = |password: &str| Argon2::default().verify_password(password.as_bytes(), &hash);
            verify(DEVELOPMENT_PASSWORD).unwrap();
            assert!(verify("another password").is_err());
        }
    }
}
