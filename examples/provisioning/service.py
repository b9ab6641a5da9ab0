"""Provisioning a user, as such code grows: every function opens the session it needs.

That is convenient: each of them works alone, from the API, from a job, from a shell. Together, one
`provision_user()` opens 26 sessions, three of them at once, because some are opened while another is in
its transaction. The numbers in the comments count them.
"""

from sqlalchemy import select, update

from database import Session
from models import Agent, Grant, Member, Tenant, User, Workspace

RESOURCES = ["users", "agents", "files", "threads", "api-keys", "invoices"]
AGENTS = ["assistant", "researcher"]


class AlreadyExists(Exception):
    pass


def provision_user(email: str, company: str) -> User:
    """A new customer: tenant, user, permissions, two agents, a workspace. 26 sessions."""
    if find_user(email):  # 1
        raise AlreadyExists(email)
    tenant = find_tenant(company) or create_tenant(company)  # 2
    set_plan(tenant, "starter")  # 1
    user = create_user(tenant, email)  # 1
    grant_defaults(user)  # 7
    for kind in AGENTS:
        if not find_agent(user, kind):  # 1 for each
            create_agent(user, kind)  # 4 for each
    workspace = create_workspace(tenant, user)  # 2
    set_theme(workspace, "dark")  # 1
    welcome(user)  # 1
    return user


def find_user(email: str) -> User | None:
    with Session() as session:
        return session.scalar(select(User).where(User.email == email))


def find_tenant(slug: str) -> Tenant | None:
    with Session() as session:
        return session.scalar(select(Tenant).where(Tenant.slug == slug))


def create_tenant(slug: str) -> Tenant:
    with Session.begin() as session:
        tenant = Tenant(slug=slug)
        session.add(tenant)
        return tenant


def set_plan(tenant: Tenant, plan: str) -> None:
    with Session.begin() as session:
        session.execute(update(Tenant).where(Tenant.id == tenant.id).values(plan=plan))


def create_user(tenant: Tenant, email: str) -> User:
    with Session.begin() as session:
        user = User(tenant_id=tenant.id, email=email)
        session.add(user)
        return user


def grant_defaults(user: User) -> None:
    """What the user's plan allows, resource by resource: a session, and one inside it for each."""
    with Session() as session:
        plan = session.scalar(select(Tenant.plan).where(Tenant.id == user.tenant_id))
        for resource in RESOURCES:
            grant(f"user:{user.id}", resource, "owner" if plan != "trial" else "reader")


def grant(subject: str, resource: str, role: str) -> None:
    with Session.begin() as session:
        session.add(Grant(subject=subject, resource=resource, role=role))


def find_agent(user: User, kind: str) -> Agent | None:
    with Session() as session:
        return session.scalar(select(Agent).where(Agent.user_id == user.id, Agent.kind == kind))


def create_agent(user: User, kind: str) -> Agent:
    """The agent comes to be together with its permissions, or not at all."""
    with Session.begin() as session:
        agent = Agent(user_id=user.id, kind=kind)
        session.add(agent)
        session.flush()
        share_agent(agent, user)
        return agent


def share_agent(agent: Agent, user: User) -> None:
    """Who may use it: its user, and the colleagues. Three deep by now."""
    with Session() as session:
        slug = session.scalar(select(Tenant.slug).where(Tenant.id == user.tenant_id))
        grant(f"user:{user.id}", f"agent:{agent.id}", "owner")
        grant(f"tenant:{slug}", f"agent:{agent.id}", "reader")


def create_workspace(tenant: Tenant, user: User) -> Workspace:
    with Session.begin() as session:
        workspace = Workspace(tenant_id=tenant.id, name=f"{tenant.slug}'s workspace")
        session.add(workspace)
        session.flush()
        join(tenant, user)
        return workspace


def join(tenant: Tenant, user: User) -> None:
    with Session.begin() as session:
        session.add(Member(tenant_id=tenant.id, user_id=user.id))


def set_theme(workspace: Workspace, theme: str) -> None:
    with Session.begin() as session:
        session.execute(update(Workspace).where(Workspace.id == workspace.id).values(theme=theme))


def welcome(user: User) -> None:
    with Session.begin() as session:
        session.execute(update(User).where(User.id == user.id).values(welcomed=True))
