package version

import "time"

// A Ref names a snapshot: Digest identifies it, Number, the revision it was
// published as, is its label for people. The zero Ref names nothing.
type Ref struct {
	Number int64  `json:"number"`
	Digest Digest `json:"digest"`
}

// IsZero tells whether r names nothing.
func (r Ref) IsZero() bool { return r.Digest.IsZero() }

// A Revision is a snapshot published into the fleet's history. It never
// changes.
type Revision struct {
	Number  int64             `json:"number"` // from 1, only grows
	Digest  Digest            `json:"digest"`
	Parent  int64             `json:"parent"` // the revision it was composed on; 0 for none
	Author  string            `json:"author"`
	Message string            `json:"message"`
	Time    time.Time         `json:"time"`
	Modules map[string]Digest `json:"modules"`
	Routes  int               `json:"routes"`          // how many routes the table has
	Needs   []string          `json:"needs,omitempty"` // capabilities that the table needs, sorted
}

// Ref returns the revision's name and label.
func (r Revision) Ref() Ref { return Ref{Number: r.Number, Digest: r.Digest} }
