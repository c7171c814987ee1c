package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"routerd.dev/internal/version"
)

// What a caller can tell apart with errors.Is.
var (
	// ErrNotInitialized: there is no fleet under the prefix.
	ErrNotInitialized = errors.New("the fleet is not initialized")
	// ErrNotFound: the record named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrConflict: somebody else changed what the write was based on.
	ErrConflict = errors.New("conflict")
	// ErrNothingChanged: what was to be published is live already. The error
	// is a *NothingChangedError.
	ErrNothingChanged = errors.New("nothing changed")
	// ErrStale: a record moved since it was read; read again and decide anew.
	ErrStale = errors.New("records changed since they were read")
	// ErrDeposed: the term has ended; nothing was written.
	ErrDeposed = errors.New("no longer the elected controller")
	// ErrNotReady: an instance of the group does not hold the nonce, or one is
	// registered where none may be. The error is a *NotReadyError.
	ErrNotReady = errors.New("not ready")
	// ErrTwin: another process has the same instance name. The error is a
	// *TwinError.
	ErrTwin = errors.New("instance name is taken")
	// ErrLostMembership: the instance's keys are gone or another's; it counts
	// as not ready and has to join again.
	ErrLostMembership = errors.New("membership lost")
	// ErrBusy: gc holds its lock.
	ErrBusy = errors.New("garbage collection is running")
	// ErrUnavailable: etcd did not answer, or cannot at the moment.
	ErrUnavailable = errors.New("etcd is not available")
	// ErrDenied: etcd's access control forbids it.
	ErrDenied = errors.New("permission denied")
	// ErrNoSpace: etcd's database is full and takes only reads and deletes.
	ErrNoSpace = errors.New("etcd is out of space")
	// ErrTooLarge: the transaction is over a limit of etcd.
	ErrTooLarge = errors.New("too large for one transaction")
	// ErrCondemned: the digest killed or was refused by the instances that were
	// to prepare it first; it is never prepared again.
	ErrCondemned = errors.New("the digest is condemned")
	// ErrCorrupt: a record cannot be read.
	ErrCorrupt = errors.New("unreadable record")
)

// A NothingChangedError says that the fleet's target has the digest already
// and every group serves it.
type NothingChangedError struct{ Target version.Ref }

func (e *NothingChangedError) Error() string {
	return fmt.Sprintf("nothing changed: revision %d (%s) is live and has this digest", e.Target.Number, e.Target.Digest.Short())
}

// Is makes the error an ErrNothingChanged.
func (e *NothingChangedError) Is(target error) bool { return target == ErrNothingChanged }

// A NotReadyError names the groups that stopped a commit: Groups have an
// instance that does not hold the nonce, or none at all; Occupied have
// instances though they must be empty. Both are sorted.
type NotReadyError struct{ Groups, Occupied []string }

func (e *NotReadyError) Error() string {
	var parts []string
	if len(e.Groups) > 0 {
		parts = append(parts, "not every instance is ready in "+strings.Join(e.Groups, ", "))
	}
	if len(e.Occupied) > 0 {
		parts = append(parts, "instances are registered in "+strings.Join(e.Occupied, ", "))
	}
	return strings.Join(parts, "; ")
}

// Is makes the error an ErrNotReady.
func (e *NotReadyError) Is(target error) bool { return target == ErrNotReady }

// A TwinError names who has the instance name.
type TwinError struct {
	Instance, Address, Boot string
	// Expires is how long the other's lease lasts if it is dead: after that a
	// new Join succeeds, unless the other lives and renews it. Zero: unknown.
	Expires time.Duration
}

func (e *TwinError) Error() string {
	return fmt.Sprintf("instance name %s is taken by the process at %s (boot %s); give this one another --instance, or wait %s if that process is dead",
		e.Instance, e.Address, e.Boot, e.Expires.Round(time.Second))
}

// Is makes the error an ErrTwin.
func (e *TwinError) Is(target error) bool { return target == ErrTwin }

// A Broken names a record that cannot be read, and why. What of its key cannot
// be printed is escaped.
type Broken struct {
	Key string `json:"key"`
	Why string `json:"why"`
}

func (b Broken) String() string { return b.Key + ": " + b.Why }

// who names as whom this store comes to etcd.
func (s *Store) who() string {
	switch {
	case s.cfg.Username != "":
		return fmt.Sprintf("etcd user %q", s.cfg.Username)
	case s.certified() != "":
		return fmt.Sprintf("etcd user %q, by its certificate", s.certified())
	case s.cfg.TLS != nil:
		return "the etcd user that the certificate names"
	}
	return "who comes without a user"
}

// explain wraps what the client returned in the Err value that fits, with the
// way out. what is verb and object; key is what the call touched.
func (s *Store) explain(ctx context.Context, what, key string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", what, context.Canceled)
	}
	code := status.Code(err)
	var coded rpctypes.EtcdError
	if errors.As(err, &coded) {
		code = coded.Code()
	}
	has := func(e error) bool { return errors.Is(err, e) || strings.Contains(err.Error(), rpctypes.ErrorDesc(e)) }
	switch {
	case has(rpctypes.ErrPermissionDenied):
		return fmt.Errorf("%s: %w: %s may not use %s: routectl etcd setup gives users what they need", what, ErrDenied, s.who(), key)
	case has(rpctypes.ErrAuthFailed), has(rpctypes.ErrUserEmpty), has(rpctypes.ErrInvalidAuthToken), code == codes.Unauthenticated:
		return fmt.Errorf("%s: %w: etcd refuses user %q: %v; check --user and its password", what, ErrDenied, s.cfg.Username, err)
	case has(rpctypes.ErrNoSpace):
		return fmt.Errorf("%s: %w: compact and defragment etcd and disarm its NOSPACE alarm, or raise its quota; then run routectl gc", what, ErrNoSpace)
	case has(rpctypes.ErrRequestTooLarge), has(rpctypes.ErrTooManyOps), strings.Contains(err.Error(), "larger than max"):
		return fmt.Errorf("%s: %w: %v", what, ErrTooLarge, err)
	case code == codes.Unavailable, code == codes.DeadlineExceeded, code == codes.Canceled, code == codes.ResourceExhausted,
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, clientv3.ErrNoAvailableEndpoints):
		return fmt.Errorf("%s: %w: %s: %w", what, ErrUnavailable, s.probe(ctx), err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
