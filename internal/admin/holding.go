package admin

import (
	"net/http"

	"routerd.dev/internal/version"
)

// A Holding is what an instance can give back to an etcd that lost it: the
// snapshot it serves and the numbers it ever saw.
type Holding struct {
	Fleet           string            `json:"fleet"`
	Group           string            `json:"group"`
	Instance        string            `json:"instance"`
	Serving         version.Ref       `json:"serving"`
	HighestEpoch    int64             `json:"highestEpoch"`
	HighestRevision int64             `json:"highestRevision"`
	Manifest        []byte            `json:"manifest"` // canonical bytes
	Chunks          map[string][]byte `json:"chunks"`   // packed, by digest
}

// holding makes the snapshot anew from what is served: the canonical bytes of
// a table are always the same, and the digest proves it.
func (h handler) holding(w http.ResponseWriter, _ *http.Request) {
	s := h.Server.Serving()
	if s == nil || s.Stable == nil {
		problem(w, http.StatusServiceUnavailable, "nothing is served, so there is nothing to give back")
		return
	}
	snap, err := version.Encode(s.Stable.Table())
	if err != nil {
		problem(w, http.StatusInternalServerError, "encode what is served: "+err.Error())
		return
	}
	ref := s.Stable.Ref()
	if snap.Digest != ref.Digest {
		problem(w, http.StatusInternalServerError, "what is served has digest "+snap.Digest.String()+", not "+ref.Digest.String()+": the build differs from the one that published it")
		return
	}
	st := h.Agent.Status()
	out := Holding{
		Fleet: st.Fleet, Group: st.Group, Instance: st.Instance, Serving: ref,
		HighestEpoch: st.HighestEpoch, HighestRevision: st.HighestRevision,
		Manifest: snap.ManifestBytes, Chunks: map[string][]byte{},
	}
	for d, packed := range snap.Chunks() {
		out.Chunks[d.String()] = packed
	}
	reply(w, http.StatusOK, out)
}
