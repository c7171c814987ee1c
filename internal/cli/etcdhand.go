package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"routerd.dev/internal/store"
)

// handing is the flags of `etcd certs` that give certificates to their holders.
type handing struct {
	to    []string
	owner string
}

func (h *handing) flags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&h.to, "to", nil, "copy a certificate, its key and ca.pem into a folder of its holder, such as a container's volume, NAME=DIR; may be repeated")
	fs.StringVar(&h.owner, "owner", "", "with --to, who owns the copies, UID or UID:GID, by number")
}

// handovers reads the flags; every name must be one that is asked for.
func (h *handing) handovers(requests []store.CertificateRequest) ([]store.Handover, error) {
	var errs []error
	uid, gid, err := ownerOf(h.owner)
	if err != nil {
		errs = append(errs, err)
	}
	var all []store.Handover
	for _, t := range h.to {
		name, dir, _ := strings.Cut(t, "=")
		switch {
		case name == "" || dir == "":
			errs = append(errs, fmt.Errorf("--to %s: want NAME=DIR, the certificate and its holder's folder", t))
		case !slices.ContainsFunc(requests, func(r store.CertificateRequest) bool { return r.Name == name }):
			errs = append(errs, fmt.Errorf("--to %s: no certificate %s is asked for; name it with --server or --client", t, name))
		}
		all = append(all, store.Handover{Name: name, Dir: dir, UID: uid, GID: gid})
	}
	if h.owner != "" && len(h.to) == 0 {
		errs = append(errs, errors.New("--owner is of copies, so it goes with --to"))
	}
	return all, errors.Join(errs...)
}

// ownerOf reads UID or UID:GID; without a text both are -1.
func ownerOf(s string) (uid, gid int, err error) {
	if s == "" {
		return -1, -1, nil
	}
	u, g, both := strings.Cut(s, ":")
	if !both {
		g = u
	}
	id, err := strconv.ParseUint(u, 10, 31)
	group, gerr := strconv.ParseUint(g, 10, 31)
	if err != nil || gerr != nil {
		return 0, 0, fmt.Errorf("--owner %s: want numbers, UID or UID:GID, such as 65532:65532", s)
	}
	return int(id), int(group), nil
}
