"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None

def upgrade() -> None:
    """One step forward; there is none back: restore the backup instead."""

    op.create_table('api_tokens',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('role', sa.String(), nullable=False),
    sa.Column('sha256', sa.String(), nullable=False),
    sa.Column('created_at', sa.String(), nullable=False),
    sa.Column('created_by', sa.String(), nullable=False),
    sa.Column('revoked_at', sa.String(), nullable=True),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('sha256')
    )
    op.create_table('assignments',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('number', sa.BigInteger(), nullable=False),
    sa.Column('rollout', sa.String(), nullable=False),
    sa.Column('device', sa.String(), nullable=False),
    sa.Column('unit', sa.String(), nullable=False),
    sa.Column('version', sa.String(), nullable=False),
    sa.Column('manifest_sha256', sa.String(), nullable=False),
    sa.Column('cancelled', sa.Boolean(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('reason', sa.String(), nullable=False),
    sa.Column('updated_at', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('rollout', 'device', 'unit', name='uq_assignments')
    )
    with op.batch_alter_table('assignments', schema=None) as batch_op:
        batch_op.create_index('ix_assignments_device', ['device', 'unit'], unique=False)

    op.create_table('audit',
    sa.Column('id', sa.Integer(), autoincrement=True, nullable=False),
    sa.Column('at', sa.String(), nullable=False),
    sa.Column('who', sa.String(), nullable=False),
    sa.Column('role', sa.String(), nullable=False),
    sa.Column('address', sa.String(), nullable=False),
    sa.Column('action', sa.String(), nullable=False),
    sa.Column('target', sa.String(), nullable=False),
    sa.Column('detail', sa.JSON(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('blobs',
    sa.Column('sha256', sa.String(), nullable=False),
    sa.Column('form', sa.String(), nullable=False),
    sa.Column('size', sa.BigInteger(), nullable=False),
    sa.Column('stored', sa.BigInteger(), nullable=False),
    sa.Column('created_at', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('sha256')
    )
    op.create_table('device_tokens',
    sa.Column('sha256', sa.String(), nullable=False),
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('labels', sa.JSON(), nullable=False),
    sa.Column('device', sa.String(), nullable=True),
    sa.Column('uses', sa.Integer(), nullable=False),
    sa.Column('used', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.String(), nullable=False),
    sa.Column('created_by', sa.String(), nullable=False),
    sa.Column('expires_at', sa.String(), nullable=False),
    sa.Column('revoked_at', sa.String(), nullable=True),
    sa.PrimaryKeyConstraint('sha256'),
    sa.UniqueConstraint('id')
    )
    op.create_table('enrolments',
    sa.Column('token', sa.String(), nullable=False),
    sa.Column('keyid', sa.String(), nullable=False),
    sa.Column('device', sa.String(), nullable=False),
    sa.Column('key', sa.JSON(), nullable=False),
    sa.Column('csr', sa.String(), nullable=False),
    sa.Column('agent', sa.String(), nullable=False),
    sa.Column('address', sa.String(), nullable=False),
    sa.Column('asked_at', sa.String(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('certificate', sa.String(), nullable=True),
    sa.PrimaryKeyConstraint('token', 'keyid')
    )
    with op.batch_alter_table('enrolments', schema=None) as batch_op:
        batch_op.create_index('ix_enrolments_state', ['state'], unique=False)

    op.create_table('certificates',
    sa.Column('serial', sa.String(), nullable=False),
    sa.Column('device', sa.String(), nullable=False),
    sa.Column('keyid', sa.String(), nullable=False),
    sa.Column('key', sa.JSON(), nullable=False),
    sa.Column('issued_at', sa.String(), nullable=False),
    sa.Column('expires_at', sa.String(), nullable=False),
    sa.Column('first_used_at', sa.String(), nullable=True),
    sa.Column('revoked_at', sa.String(), nullable=True),
    sa.Column('reason', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('serial')
    )
    with op.batch_alter_table('certificates', schema=None) as batch_op:
        batch_op.create_index('ix_certificates_device', ['device'], unique=False)

    op.create_table('devices',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('labels', sa.JSON(), nullable=False),
    sa.Column('key', sa.JSON(), nullable=False),
    sa.Column('enrolled_at', sa.String(), nullable=False),
    sa.Column('agent', sa.String(), nullable=False),
    sa.Column('online', sa.Boolean(), nullable=False),
    sa.Column('last_seen', sa.String(), nullable=True),
    sa.Column('reported', sa.JSON(), nullable=True),
    sa.Column('epoch', sa.BigInteger(), nullable=False),
    sa.Column('counter', sa.BigInteger(), nullable=False),
    sa.Column('desired', sa.LargeBinary(), nullable=True),
    sa.Column('desired_units', sa.JSON(), nullable=True),
    sa.Column('desired_issued_at', sa.String(), nullable=True),
    sa.Column('desired_sideload', sa.String(), nullable=True),
    sa.Column('sideloads', sa.JSON(), nullable=True),
    sa.Column('refused', sa.Integer(), nullable=False),
    sa.Column('revoked_at', sa.String(), nullable=True),
    sa.Column('clone', sa.JSON(), nullable=True),
    sa.Column('instances', sa.JSON(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('epochs',
    sa.Column('device', sa.String(), nullable=False),
    sa.Column('epoch', sa.String(), nullable=False),
    sa.Column('rank', sa.Integer(), nullable=False),
    sa.Column('upto', sa.BigInteger(), nullable=False),
    sa.Column('lost', sa.JSON(), nullable=False),
    sa.PrimaryKeyConstraint('device', 'epoch')
    )
    op.create_table('events',
    sa.Column('id', sa.Integer(), autoincrement=True, nullable=False),
    sa.Column('device', sa.String(), nullable=False),
    sa.Column('epoch', sa.String(), nullable=False),
    sa.Column('number', sa.BigInteger(), nullable=False),
    sa.Column('received_at', sa.String(), nullable=False),
    sa.Column('kind', sa.String(), nullable=False),
    sa.Column('assignment', sa.String(), nullable=True),
    sa.Column('document', sa.JSON(), nullable=False),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('device', 'epoch', 'number', name='uq_events')
    )
    with op.batch_alter_table('events', schema=None) as batch_op:
        batch_op.create_index('ix_events_assignment', ['assignment'], unique=False)
        batch_op.create_index('ix_events_kind', ['kind'], unique=False)

    op.create_table('proposals',
    sa.Column('model', sa.String(), nullable=False),
    sa.Column('version', sa.String(), nullable=False),
    sa.Column('action', sa.String(), nullable=False),
    sa.Column('role_version', sa.BigInteger(), nullable=False),
    sa.Column('manifest', sa.LargeBinary(), nullable=True),
    sa.Column('metadata', sa.LargeBinary(), nullable=False),
    sa.Column('signatures', sa.JSON(), nullable=False),
    sa.Column('reason', sa.String(), nullable=False),
    sa.Column('created_at', sa.String(), nullable=False),
    sa.Column('created_by', sa.String(), nullable=False),
    sa.Column('expires_at', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('model')
    )
    op.create_table('releases',
    sa.Column('model', sa.String(), nullable=False),
    sa.Column('version', sa.String(), nullable=False),
    sa.Column('manifest_sha256', sa.String(), nullable=False),
    sa.Column('payload_sha256', sa.String(), nullable=False),
    sa.Column('size', sa.BigInteger(), nullable=False),
    sa.Column('manifest', sa.LargeBinary(), nullable=False),
    sa.Column('metadata', sa.LargeBinary(), nullable=True),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('created_at', sa.String(), nullable=False),
    sa.Column('published_by', sa.String(), nullable=False),
    sa.Column('signatures', sa.JSON(), nullable=False),
    sa.Column('ended_at', sa.String(), nullable=True),
    sa.Column('ended_by', sa.String(), nullable=True),
    sa.Column('ended_reason', sa.String(), nullable=True),
    sa.Column('ended_number', sa.BigInteger(), nullable=True),
    sa.Column('revoked_by', sa.JSON(), nullable=False),
    sa.PrimaryKeyConstraint('model', 'version')
    )
    op.create_table('rollouts',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('number', sa.BigInteger(), nullable=False),
    sa.Column('model', sa.String(), nullable=False),
    sa.Column('version', sa.String(), nullable=False),
    sa.Column('manifest_sha256', sa.String(), nullable=False),
    sa.Column('to', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.String(), nullable=False),
    sa.Column('created_by', sa.String(), nullable=False),
    sa.Column('aborted_at', sa.String(), nullable=True),
    sa.Column('ended', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('number')
    )
    op.create_table('verdicts',
    sa.Column('id', sa.Integer(), autoincrement=True, nullable=False),
    sa.Column('device', sa.String(), nullable=False),
    sa.Column('received_at', sa.String(), nullable=False),
    sa.Column('document', sa.JSON(), nullable=True),
    sa.Column('envelope', sa.LargeBinary(), nullable=False),
    sa.Column('verified', sa.Boolean(), nullable=False),
    sa.Column('error', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    with op.batch_alter_table('verdicts', schema=None) as batch_op:
        batch_op.create_index('ix_verdicts_device', ['device'], unique=False)

