package harness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// settling is how long Docker is given between two looks.
const settling = 500 * time.Millisecond

// Sweep removes what this process made in Docker: containers, volumes, networks
// and images of its grounds and of the Compose project named. It is for a run
// that is interrupted, whose tests no longer remove anything themselves, but
// may be making more: it ends when nothing is left, after a minute at most.
// Without a Docker engine there is nothing to do.
func Sweep(project string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	docker, err := client.New(client.FromEnv)
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	defer docker.Close()
	if _, err := docker.Ping(ctx, client.PingOptions{}); err != nil {
		return nil // no engine, so no container
	}
	for quiet := 0; ; {
		found := 0
		var all []error
		for label, images := range map[string][]string{
			"org.testcontainers.sessionId=" + testcontainers.SessionID(): nil,
			"com.docker.compose.project=" + project:                      {project, project + "-etcd"},
		} {
			n, err := sweep(ctx, docker, label, images)
			found += n
			all = append(all, err)
		}
		if quiet++; found > 0 {
			quiet = 0
		}
		if quiet == 3 || ctx.Err() != nil {
			return errors.Join(all...)
		}
		time.Sleep(settling) // what was asked of Docker before the interruption may still come to be
	}
}

// sweep removes what has a label, and images, and tells how much there was.
func sweep(ctx context.Context, docker *client.Client, label string, images []string) (found int, err error) {
	var all []error
	labelled := make(client.Filters).Add("label", label)
	containers, err := docker.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: labelled})
	all = append(all, err)
	for _, c := range containers.Items {
		_, err := docker.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		all = append(all, err)
	}
	volumes, err := docker.VolumeList(ctx, client.VolumeListOptions{Filters: labelled})
	all = append(all, err)
	for _, v := range volumes.Items {
		_, err := docker.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{Force: true})
		all = append(all, err)
	}
	networks, err := docker.NetworkList(ctx, client.NetworkListOptions{Filters: labelled})
	all = append(all, err)
	for _, n := range networks.Items {
		_, err := docker.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{})
		all = append(all, err)
	}
	// Images by name: one that is made of the same files is the same to Docker.
	wanted := labelled
	if images != nil {
		wanted = make(client.Filters).Add("reference", images...)
	}
	tagged, err := docker.ImageList(ctx, client.ImageListOptions{Filters: wanted})
	all = append(all, err)
	var names []string
	for _, i := range tagged.Items {
		names = append(names, i.RepoTags...)
	}
	if images != nil {
		names = slices.DeleteFunc(names, func(name string) bool {
			repo, _, _ := strings.Cut(name, ":")
			return !slices.Contains(images, repo)
		})
	}
	for _, name := range names {
		_, err := docker.ImageRemove(ctx, name, client.ImageRemoveOptions{Force: true, PruneChildren: true})
		all = append(all, err)
	}
	return len(containers.Items) + len(volumes.Items) + len(networks.Items) + len(names), errors.Join(all...)
}
