package store

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"routerd.dev/internal/version"
)

// The records under the prefix. switch.md says who writes which.
const (
	keyFormat     = "format"
	keyFleet      = "fleet"
	keyHead       = "head"
	dirElection   = "election/"
	keyLeader     = dirElection + "leader"
	dirGC         = "gc/"
	keyGCLock     = dirGC + "lock"
	keyGCCount    = dirGC + "count"
	dirChunks     = "chunks/"
	dirManifests  = "manifests/"
	dirRevisions  = "revisions/"
	dirGroups     = "groups/"
	dirPrepares   = "prepare/"
	dirReady      = "ready/"
	dirInstances  = "instances/"
	dirReports    = "reports/"
	dirIntents    = "intents/"
	dirRollouts   = "rollouts/" // those under way
	dirEnded      = "ended/"    // rollouts that ended: nobody decides on them, so no view reads them
	dirCondemned  = "condemned/"
	dirServed     = "served/"
	dirBaked      = "baked/"
	dirStrategies = "strategies/"
	dirMeasures   = "measures/"
	dirBound      = "bound/" // of which group an instance's name is: see binding
	dirChecks     = "checks/"
	dirPins       = "pins/"
	dirAudit      = "audit/"
)

// MaxName is how many bytes a group's or an instance's name may have.
const MaxName = 63

// CheckName tells what is wrong with the name of a group or an instance; what
// says which of both it is. A name has 1 to MaxName letters, digits, '.', '_'
// and '-', and begins with a letter or a digit, because it is a part of keys.
func CheckName(what, name string) error {
	ok := name != "" && len(name) <= MaxName
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		ok = alnum || i > 0 && (c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%s name %.80q: want 1 to %d letters, digits, '.', '_' or '-', beginning with a letter or a digit", what, name, MaxName)
	}
	return nil
}

// shown is a key or a name for people: somebody may have written one that does
// something to their terminals.
func shown(key string) string {
	if quoted := strconv.Quote(key); strings.ContainsFunc(key, func(r rune) bool { return !strconv.IsPrint(r) }) || !utf8.ValidString(key) {
		return quoted[1 : len(quoted)-1]
	}
	return key
}

// NewID returns a name that was never used before: the time, so that ids sort
// by age, and 64 random bits.
func NewID(now time.Time) string {
	return now.UTC().Format("20060102T150405.000") + "-" + randomHex(8)
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: crypto/rand crashes the program instead
	return hex.EncodeToString(b)
}

func (s *Store) key(name string) string { return s.cfg.Prefix + name }

func (s *Store) revisionKey(n int64) string {
	return s.key(fmt.Sprintf("%s%020d", dirRevisions, n))
}

// pinKey sorts by number.
func (s *Store) pinKey(n int64) string { return s.key(fmt.Sprintf("%s%020d", dirPins, n)) }

func (s *Store) chunkKey(d version.Digest) string    { return s.key(dirChunks + d.String()) }
func (s *Store) manifestKey(d version.Digest) string { return s.key(dirManifests + d.String()) }

func (s *Store) readyKey(group, instance string) string {
	return s.key(dirReady + group + "/" + instance)
}

// auditKey sorts by time; the random part keeps two of the same instant apart.
func (s *Store) auditKey(at time.Time) string {
	return s.key(dirAudit + at.UTC().Format("20060102T150405.000000000") + "-" + randomHex(4))
}

// name cuts what stands after prefix and dir.
func (s *Store) name(key, dir string) string {
	return strings.TrimPrefix(key, s.cfg.Prefix+dir)
}
