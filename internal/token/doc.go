// Package token makes and checks the signed tokens by which a client does not
// go back in time when it moves between instances: a token says which digest a
// client was served at which epoch of a group.
//
// A token is base64url of: a version byte, epoch and expiry as varints, the
// digest, fleet and group each behind its length, and the first 16 bytes of
// HMAC-SHA256 over "routerd token\n" and all that stands before them.
// Whoever has one can read it; only who has the key can make one. It is no
// secret and no login: every client of an instance is given the same.
//
// # Keys
//
// A key file has one key on each line, newest first, in base64, of at least 32
// bytes; empty lines and those that begin with # are skipped. The first key
// signs, each verifies. To rotate, add the new key as the second line on every
// instance, then make it the first on every instance, and drop the old one once
// its tokens have expired.
//
// # Invariants
//
//   - Verify gives the claims that Sign was given, or an error: ErrForged
//     or ErrExpired. It never panics, looks at MaxBytes at most, and its time does not
//     depend on how much of a signature is right.
//   - The same claims give the same token on every instance with the same first key.
//
// # Concurrency
//
// Keys may be used from many goroutines. Nothing shared is written for a token
// that was verified before. Nothing runs in the background: whoever asks finds
// out, at most once a second, that the file has changed.
//
// # Failure
//
// Load refuses a file that others can read or write, and what is not keys.
// Later, such a file, or none, changes nothing: the keys before stay in use,
// and Err says why.
package token
