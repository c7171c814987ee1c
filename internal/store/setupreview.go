package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// An AccessReview is who may do what with a fleet, and what of it is wrong.
type AccessReview struct {
	Enabled bool           `json:"enabled"` // access control is on
	Users   []ReviewedUser `json:"users"`   // by name
	Roles   []ReviewedRole `json:"roles"`   // by name
	Revoked []string       `json:"revoked"` // names that stay out of the fleet, whoever sets them up
}

// A ReviewedUser is one user of etcd, with all its roles.
type ReviewedUser struct {
	Name  string   `json:"name"`
	Roles []string `json:"roles"`
	Wrong []string `json:"wrong,omitempty"`
}

// A ReviewedRole is one role that has to do with the fleet. Its grants are all
// of them, those elsewhere, too.
type ReviewedRole struct {
	Name   string   `json:"name"`
	Grants []Grant  `json:"grants"`
	Wrong  []string `json:"wrong,omitempty"`
}

// Review says what users and roles mean for the fleet under prefix. Roles that
// have to do with other keys only are left out.
func (st AccessState) Review(prefix string) AccessReview {
	r := AccessReview{Enabled: st.Enabled, Users: []ReviewedUser{}, Roles: []ReviewedRole{}, Revoked: st.Revoked(prefix)}
	held := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(st.Users)) {
		u := ReviewedUser{Name: name, Roles: append([]string{}, st.Users[name]...)}
		for _, role := range u.Roles {
			held[role] = true
		}
		_, ofSetup := setupLease(name)
		switch {
		case ofSetup:
			u.Wrong = append(u.Wrong, fmt.Sprintf("of a setup that is under way, or was killed: routectl etcd setup removes it, %.0f minutes after it was made", setupTime.Minutes()))
		case name != rootUser && slices.Contains(u.Roles, rootUser):
			u.Wrong = append(u.Wrong, "may do everything in etcd")
		}
		r.Users = append(r.Users, u)
	}
	for _, name := range slices.Sorted(maps.Keys(st.Roles)) {
		role := ReviewedRole{Name: name, Grants: st.Roles[name]}
		switch {
		case ours(prefix, name):
			role.Wrong = reviewOurs(prefix, name, role.Grants)
			if !held[name] {
				role.Wrong = append(role.Wrong, "nobody has it")
			}
		case slices.ContainsFunc(role.Grants, func(g Grant) bool { return g.overlaps(prefix) }):
			for _, g := range role.Grants {
				if g.overlaps(prefix) && g.writes() || g.covers(prefix) {
					role.Wrong = append(role.Wrong, "not of routectl etcd setup, and may "+g.String())
				}
			}
		default:
			continue
		}
		r.Roles = append(r.Roles, role)
	}
	return r
}

// reviewOurs holds a role of the fleet against what it needs.
func reviewOurs(prefix, role string, have []Grant) (wrong []string) {
	kind := strings.TrimPrefix(role, prefix)
	group := ""
	if name, ok := strings.CutPrefix(kind, roleInstance); ok {
		if group = groupOf(prefix, name, have); group == "" {
			return []string{"it may not say that it is ready: routectl etcd setup --instance NAME=GROUP makes it right"}
		}
	}
	want := grants(prefix, kind, group)
	missing, extra := differ(have, want)
	for _, g := range have {
		if slices.ContainsFunc(missing, func(m Grant) bool { return m.Key == g.Key && m.End == g.End && m.Kind == mayRead }) {
			extra = append(extra, g) // more than reading
		}
	}
	for _, g := range extra {
		wrong = append(wrong, "more than needed: "+g.String())
	}
	for _, g := range missing {
		if !slices.ContainsFunc(extra, func(e Grant) bool { return e.Key == g.Key && e.End == g.End }) {
			wrong = append(wrong, "lacks: "+g.String())
		}
	}
	if len(wrong) > 0 {
		wrong = append(wrong, "routectl etcd setup makes it right")
	}
	return wrong
}

// About is whose step it is, and what it does, for people.
func (s AccessStep) About() (about, what string) {
	_, mark, isMark := strings.Cut(s.Role, "/"+roleRevoked)
	switch s.Do {
	case addRole:
		if isMark {
			return "user " + mark, "marked as revoked"
		}
		return "role " + s.Role, "made"
	case deleteRole:
		if isMark {
			return "user " + mark, "no longer marked as revoked"
		}
		return "role " + s.Role, "deleted"
	case grantKeys:
		return "role " + s.Role, "may " + s.Grant.String()
	case revokeKeys:
		return "role " + s.Role, "may no longer " + s.Grant.Keys()
	case addUser:
		if s.Password {
			return "user " + s.User, "made, comes by password"
		}
		return "user " + s.User, "made, comes by certificate"
	case deleteUser:
		return "user " + s.User, "deleted"
	case grantRole:
		return "user " + s.User, "has role " + s.Role
	case revokeRole:
		return "user " + s.User, "has no longer role " + s.Role
	case deleteKey:
		return "keys", fmt.Sprintf("%s deleted", s.Grant.Key)
	case putKey:
		return "keys", fmt.Sprintf("%s set to %s", s.Grant.Key, s.Value)
	default:
		return "access control", "on"
	}
}
