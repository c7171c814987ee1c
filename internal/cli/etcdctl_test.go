package cli_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcdLeases lists the leases that there are.
func etcdLeases(endpoint string) ([]clientv3.LeaseStatus, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	resp, err := c.Leases(ctx)
	if err != nil {
		return nil, err
	}
	return resp.Leases, nil
}

// etcdctl carries out a command line of etcd's own tool, as far as routectl
// etcd setup --dry-run prints it.
func etcdctl(endpoint string, args ...string) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	flags := map[string]bool{}
	var words []string
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			flags[a] = true
			continue
		}
		words = append(words, a)
	}
	var end string
	last := words[len(words)-1]
	if flags["--prefix=true"] {
		end = clientv3.GetPrefixRangeEnd(last)
	}
	want := func(n int, known ...string) error {
		for _, k := range known {
			delete(flags, k)
		}
		if len(words) != n || len(flags) > 0 {
			return fmt.Errorf("etcdctl %s: words or flags that are not known here", strings.Join(args, " "))
		}
		return nil
	}
	switch command := strings.Join(words[:min(2, len(words))], " "); {
	case words[0] == "del":
		if err = want(2, "--prefix=true"); err == nil {
			_, err = c.Delete(ctx, last, clientv3.WithRange(end))
		}
	case words[0] == "put":
		if err = want(3); err == nil {
			_, err = c.Put(ctx, words[1], words[2])
		}
	case command == "role add":
		if err = want(3); err == nil {
			_, err = c.RoleAdd(ctx, words[2])
		}
	case command == "role delete":
		if err = want(3); err == nil {
			_, err = c.RoleDelete(ctx, words[2])
		}
	case command == "role grant-permission":
		if err = want(5, "--prefix=true"); err == nil {
			var kind clientv3.PermissionType
			if kind, err = clientv3.StrToPermissionType(words[3]); err == nil {
				_, err = c.RoleGrantPermission(ctx, words[2], words[4], end, kind)
			}
		}
	case command == "role revoke-permission":
		if err = want(4, "--prefix=true"); err == nil {
			_, err = c.RoleRevokePermission(ctx, words[2], words[3], end)
		}
	case command == "user add":
		if !flags["--no-password"] {
			return fmt.Errorf("etcdctl user add: want --no-password")
		}
		if err = want(3, "--no-password"); err == nil {
			_, err = c.UserAddWithOptions(ctx, words[2], "", &clientv3.UserAddOptions{NoPassword: true})
		}
	case command == "user delete":
		if err = want(3); err == nil {
			_, err = c.UserDelete(ctx, words[2])
		}
	case command == "user grant-role":
		if err = want(4); err == nil {
			_, err = c.UserGrantRole(ctx, words[2], words[3])
		}
	case command == "user revoke-role":
		if err = want(4); err == nil {
			_, err = c.UserRevokeRole(ctx, words[2], words[3])
		}
	default:
		err = fmt.Errorf("etcdctl %s: not known here", command)
	}
	return err
}
